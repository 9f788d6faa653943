"""From a trained student to a deployable bundle."""

import os

# Since 1.29 ONNX Runtime tells Microsoft of every model it loads, unless this is set before it is
# imported, as several modules here do at their head.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
