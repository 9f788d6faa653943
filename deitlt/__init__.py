"""Long-tailed image classification with DeiT-LT students: the inference library.

    import deitlt

    classifier = deitlt.load("bundle/")
    prediction = classifier.predict(["photo.jpg"], experts=True)[0]
    print(prediction.label, prediction.probability, prediction.experts)

Where things are: `classifier` (images in, predictions out), `engine` (many callers), `batch`, `cli`
and `commands` (the `deitlt` program), `preprocess` (decode, resize, crop), `bundle` (the deployable
folder), `runtimes` (ONNX Runtime), `batching` (shared runs for a GPU), `longtail` and `metrics`
(counts, groups, accuracy), `labelled` (labelled folders and CSVs), `errors`. Only `student`,
`weights` and `torch_runtime` need torch; nothing else imports it.
"""

from deitlt.bundle import Bundle, open_bundle
from deitlt.classifier import Classifier, Experts, Options, Prediction, Score, load
from deitlt.errors import DeitLTError, ImageError

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Classifier",
    "DeitLTError",
    "Experts",
    "ImageError",
    "Options",
    "Prediction",
    "Score",
    "load",
    "open_bundle",
]
