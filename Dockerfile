# syntax=docker/dockerfile:1
# Three images from one file:
#   docker build -t deitlt-serving .                            the HTTP service on CPUs; no torch
#   docker build --target serving-gpu -t deitlt-serving-gpu .   the same with CUDA's libraries
#   docker build --target training -t deitlt-training .         training and export
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY deitlt deitlt
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS installer
RUN pip install --no-cache-dir "uv>=0.9" && python -m venv --without-pip /opt/deitlt
COPY --from=wheel /wheels /wheels
# Bytecode is made here: the service starts sooner, and may run on a read-only file system.
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 VIRTUAL_ENV=/opt/deitlt
# The wheel's file name holds its version; the extras have to be named with the file.

FROM installer AS packages
# serving,tracing,triton: also in front of a Triton server.
ARG EXTRAS=serving,tracing
# On Linux the library asks for onnxruntime-gpu, which is ten times as large and runs on CPUs too.
# The override takes it out of every requirement, so that the small one is the only one.
RUN echo "onnxruntime-gpu; sys_platform == 'never'" > /cpu.txt \
  && uv pip install --override /cpu.txt "$(ls /wheels/deitlt-*.whl)[$EXTRAS]" "onnxruntime>=1.26"

FROM installer AS packages-gpu
RUN uv pip install "$(ls /wheels/deitlt-*.whl)[serving,tracing]" "onnxruntime-gpu[cuda,cudnn]>=1.26"

FROM python:${PYTHON}-slim AS service
# BentoML keeps its files under BENTOML_HOME; /tmp is all that has to be writable.
ENV PATH=/opt/deitlt/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
  BENTOML_HOME=/tmp/bentoml BENTOML_DO_NOT_TRACK=True ORT_DISABLE_TELEMETRY=1
WORKDIR /app
COPY serving serving
RUN python -m compileall -q --invalidation-mode unchecked-hash serving
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 3000
# Not through the proxy that HTTP_PROXY may name; Docker hands its client's on to containers.
HEALTHCHECK --interval=15s --timeout=3s --start-period=600s --start-interval=1s \
  CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:3000/readyz', timeout=2)"]
# A bundle of your own: docker run -v "$PWD/bundle:/bundle:ro" -e DEITLT_MODEL=/bundle ...
CMD ["bentoml", "serve", "serving.service:LongTailClassifier", "--host", "0.0.0.0", "--port", "3000"]

FROM service AS serving-gpu
# Refuses to start where there is no GPU, rather than answer slowly.
ENV DEITLT_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/deitlt /opt/deitlt

FROM python:${PYTHON}-slim AS training
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 deitlt
WORKDIR /app
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/deitlt-*.whl)[training,export]" && rm -r /wheels
COPY training training
COPY export export
USER 10001:10001
CMD ["python", "-m", "training.train_student", "--help"]

FROM service AS serving
COPY --from=packages /opt/deitlt /opt/deitlt
