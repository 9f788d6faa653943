"""Every error that a caller may want to catch.

```
DeitLTError                 base of all; its text is one line: what was wrong, what to do
├── ImageError              one image cannot be classified; its neighbours are unaffected
│   ├── OpenFailed          the file cannot be read
│   ├── UnsupportedImage    not one of the accepted image formats
│   ├── DecodeFailed        the right format, but damaged
│   ├── ImageTooLarge       more bytes or pixels than allowed
│   └── NotFinite           the model's scores for it are no numbers
├── UsageError              an argument, recipe field or option is wrong
├── UnknownModel            no model of this name and version is served
├── DataError               labelled data (folder or CSV) is wrong
├── CheckpointError         a run folder or weight file is missing, damaged or of another kind
├── BundleError             a bundle is missing, damaged or changed since it was written
├── RuntimeUnavailable      the requested runtime or device cannot be used here
│   └── DeviceLost          it could, and no longer can in this process
└── EngineError             the engine did not take or finish an image
    ├── Overloaded          the queue is full; try again later
    ├── DeadlineExceeded    the answer was not ready in time
    └── EngineClosed        the engine is shutting down
```

`code` is the stable word for programs: the `error` column of batch prediction and the `code` of an
HTTP error body.
"""


class DeitLTError(Exception):
    """Base of all errors of this package."""

    code = "error"


class ImageError(DeitLTError):
    """One image cannot be classified."""

    code = "image_error"


class OpenFailed(ImageError):
    """The image file cannot be read."""

    code = "open_failed"


class UnsupportedImage(ImageError):
    """The bytes are not one of the accepted image formats."""

    code = "unsupported_image"


class DecodeFailed(ImageError):
    """The image is of an accepted format but damaged."""

    code = "decode_failed"


class ImageTooLarge(ImageError):
    """The image has more bytes or pixels than allowed."""

    code = "too_large"


class NotFinite(ImageError):
    """The model overflows on the image, as one in float16 may."""

    code = "not_finite"


class UsageError(DeitLTError):
    """An argument, recipe field or option is wrong."""

    code = "bad_request"


class UnknownModel(DeitLTError):
    """No model of this name and version is served."""

    code = "unknown_model"


class DataError(DeitLTError):
    """A labelled folder or CSV cannot be used as it is."""

    code = "bad_data"


class CheckpointError(DeitLTError):
    """A run folder or weight file is missing, damaged or of another kind."""

    code = "bad_checkpoint"


class BundleError(DeitLTError):
    """A bundle is missing, damaged or changed since it was written."""

    code = "bad_bundle"


class RuntimeUnavailable(DeitLTError):
    """The requested runtime or device cannot be used on this machine."""

    code = "runtime_unavailable"


class DeviceLost(RuntimeUnavailable):
    """A GPU failed in a way that leaves it unusable for as long as this process lives."""

    code = "device_lost"


class EngineError(DeitLTError):
    """The engine did not take or finish an image."""

    code = "engine_error"


class Overloaded(EngineError):
    """The engine's queue is full."""

    code = "overloaded"


class DeadlineExceeded(EngineError):
    """The answer was not ready before the caller's deadline."""

    code = "deadline_exceeded"


class EngineClosed(EngineError):
    """The engine is shutting down and takes no more images."""

    code = "shutting_down"
