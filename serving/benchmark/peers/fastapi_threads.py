"""FastAPI under uvicorn: the raw body goes to a pool of as many threads as there are cores."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request

from deitlt.cores import usable_cores
from serving.benchmark.peers.bundle import open_classifier


def make_app() -> FastAPI:
    """The application, for `uvicorn --factory`."""
    app = FastAPI()
    classifier = open_classifier(1)
    pool = ThreadPoolExecutor(usable_cores())

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        data = await request.body()
        loop = asyncio.get_running_loop()
        prediction = await loop.run_in_executor(pool, classifier.predict_one, data)
        return prediction.to_dict()

    @app.get("/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    return app
