# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target serving  -t deitlt-serving  .    the HTTP service; holds no torch
#   docker build --target training -t deitlt-training .    training and export
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY deitlt deitlt
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS serving
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BENTOML_DO_NOT_TRACK=True
RUN useradd --create-home --uid 10001 deitlt
WORKDIR /app
COPY --from=wheel /wheels /wheels
# The wheel's file name holds its version; the extra has to be named with the file.
RUN pip install --no-cache-dir "$(ls /wheels/deitlt-*.whl)[serving]" && rm -r /wheels
COPY serving serving
USER deitlt
EXPOSE 3000
# A bundle of your own: docker run -v "$PWD/bundle:/bundle:ro" -e DEITLT_MODEL=/bundle ...
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/readyz', timeout=2)"]
CMD ["bentoml", "serve", "serving.service:LongTailClassifier", "--host", "0.0.0.0", "--port", "3000"]

FROM python:${PYTHON}-slim AS training
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 deitlt
WORKDIR /app
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/deitlt-*.whl)[training,export]" && rm -r /wheels
COPY training training
COPY export export
USER deitlt
CMD ["python", "-m", "training.train_student", "--help"]
