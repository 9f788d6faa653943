"""LitServe with a worker process a core: `python -m serving.benchmark.peers.litserve_workers PORT`.

It takes JSON or forms, not raw bodies.
"""

import sys
from typing import Any

import litserve
from fastapi import Request

from deitlt.cores import usable_cores
from deitlt.prediction import Prediction
from serving.benchmark.peers.bundle import open_classifier

TIMEOUT_S = 60


class Classify(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's four verbs."""

    def setup(self, device: str) -> None:
        """Load the bundle; once in each worker."""
        self.classifier = open_classifier(1)

    def decode_request(self, request: Request) -> bytes:
        """The file in a form: for what is annotated so, LitServe hands over the parsed fields."""
        fields: Any = request
        data: bytes = fields["image"].file.read()
        return data

    def predict(self, x: bytes) -> Prediction:
        """Decode and run one image."""
        return self.classifier.predict_one(x)

    def encode_response(self, output: Prediction) -> dict[str, Any]:
        """The prediction as JSON types."""
        return output.to_dict()


def main() -> None:
    """Serve on a port of this machine."""
    server = litserve.LitServer(
        Classify(), accelerator="cpu", workers_per_device=usable_cores(), timeout=TIMEOUT_S
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
    )


if __name__ == "__main__":
    main()
