"""The classifier behind HTTP: a thin BentoML shell around `deitlt.engine`.

Run it from a checkout:

    DEITLT_MODEL=bundle/ bentoml serve serving.service:LongTailClassifier
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' localhost:3000/v1/classify

Where things are: `settings` (every environment variable), `startup` (settings to a warm engine),
`routes` (the HTTP routes), `uploads` (request bodies to image bytes), `service` (the shell).
"""
