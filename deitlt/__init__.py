"""Long-tailed image classification with DeiT-LT students: the inference library.

    import deitlt

    classifier = deitlt.load("bundle/")
    prediction = classifier.predict(["photo.jpg"], experts=True)[0]
    print(prediction.label, prediction.probability, prediction.experts)

Where things are: `classifier` (images in, predictions out), `prediction` (what is asked, what is
answered), `engine` (many callers), `cli` and `commands` (the `deitlt` program), `batch` (any number
of images into a table), `evaluation` (how good a bundle is), `preprocess` (decode, resize, crop),
`bundle` (the deployable folder), `runtimes` (ONNX Runtime), `batching` (shared runs for a GPU),
`longtail` and `metrics` (counts, groups, accuracy), `labelled` (labelled folders and CSVs),
`errors`. Only `student`, `weights` and `torch_runtime` need torch; nothing else imports it.
"""

from deitlt.bundle import Bundle, open_bundle
from deitlt.classifier import Classifier, load
from deitlt.errors import DeitLTError, ImageError
from deitlt.prediction import Experts, Options, Prediction, Score

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
