"""The models that are served: one or several bundles, each warmed up before a request reaches it.

A bundle that is written again under its name (`export.to_bundle --overwrite`) is loaded beside the
one in use, warmed up, and then takes its place. Images in work finish on the model they were
submitted to, so no request is dropped; a new bundle that is damaged leaves the old one in use.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from deitlt.bundle import MANIFEST, Bundle
from deitlt.classifier import Classifier
from deitlt.errors import DeitLTError, UnknownModel, UsageError

logger = logging.getLogger("deitlt.serving")

Load = Callable[[Path], Classifier]
LoadExplainer = Callable[[Bundle], Classifier | None]
Stamp = tuple[int, int, int]

# Between two tries to load a bundle that cannot be taken over and does not change, which may be for
# want of memory or of a server, s; each pause is twice the one before.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0


@dataclass(frozen=True)
class Model:
    """A warm classifier and where it came from.

    Attributes:
        path: the bundle's folder.
        classifier: answers without a first-run delay.
        explainer: the same of the variant `explain`; None where there is none, or it is not wanted.
        stamp: changes when the bundle is written again.
    """

    path: Path
    classifier: Classifier
    explainer: Classifier | None
    stamp: Stamp

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.classifier.bundle.name

    @property
    def version(self) -> str:
        """Twelve digits that stand for its content."""
        return self.classifier.bundle.version

    def forms(self) -> tuple[Classifier, ...]:
        """The one or two graphs that are loaded of it."""
        return (self.classifier,) if self.explainer is None else (self.classifier, self.explainer)


class Models:
    """Models by name and version; the first is the default. Safe to use from many threads.

    Attributes:
        num_refused: folders that were written again and hold what cannot be taken over.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        load: Load,
        load_explainer: LoadExplainer = lambda bundle: None,
    ) -> None:
        """Load and warm up every bundle.

        Args:
            paths: bundle folders; the first is the default model.
            load: makes a classifier of a bundle folder.
            load_explainer: makes one of the variant `explain`, or None.

        Raises:
            DeitLTError: a bundle cannot be loaded.
            UsageError: two folders hold the same bundle.
        """
        self._load = load
        self._load_explainer = load_explainer
        self._models = tuple(self._warm(path) for path in paths)
        self._refuse_twins(self._models)
        self.num_refused = 0
        self._refused: dict[Path, object] = {}  # what was in those folders
        self._pause_s = self._next_try = 0.0
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def default(self) -> Model:
        """The model of requests that name none."""
        return self._models[0]

    def all(self) -> tuple[Model, ...]:
        """Every model, the default first."""
        return self._models

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """The model of this name and version; of several versions the one listed first.

        Raises:
            UnknownModel: there is none.
        """
        models = self._models
        if name is None and version is None:
            return models[0]
        for model in models:
            if name in (None, model.name) and version in (None, model.version):
                return model
        wanted = name or "of this name"
        if version is not None:
            wanted += f" in version {version}"
        served = ", ".join(f"{model.name} {model.version}" for model in models)
        raise UnknownModel(f"there is no model {wanted}; served are {served}")

    def refresh(self) -> list[Model]:
        """Take over bundles that were written again; returns the new models.

        What could not be taken over is loaded again when a file of it has changed, else ever more
        rarely.
        """
        pending = [model for model in self._models if _stamp(model.path) != model.stamp]
        found: dict[Path, object] = {model.path: _stamps(model.path) for model in pending}
        unchanged = found == self._refused
        if unchanged and (not found or time.monotonic() < self._next_try):
            return []
        replaced = self._replace(pending)
        self.num_refused = len(pending) - len(replaced)
        self._refused = found if self.num_refused else {}
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if unchanged else FIRST_PAUSE_S
        self._next_try = time.monotonic() + self._pause_s
        return replaced

    def _replace(self, pending: Sequence[Model]) -> list[Model]:
        """The new models in place of these, as far as they can be loaded."""
        replaced: list[Model] = []
        # New bundles that another folder has in use, until that one is replaced too: two folders
        # may have changed places, as where the latest version is taken back.
        waiting: dict[int, Model] = {}
        for number, model in enumerate(self._models):
            if model not in pending:
                continue
            try:
                waiting[number] = self._warm(model.path)
            except (DeitLTError, OSError) as error:
                logger.error("%s stays in use: %s", model.version, error)
                continue
            except Exception:  # of a runtime, in the warm-up; the next version may be sound
                logger.exception("%s stays in use: the new one does not run", model.version)
                continue
            for new in (waiting, {number: waiting[number]}):
                if self._take_over(new):
                    replaced += new.values()
                    waiting = {n: each for n, each in waiting.items() if n not in new}
                    break
        for number, new_model in waiting.items():
            text = "%s stays in use: another folder has the bundle that %s holds now"
            logger.error(text, self._models[number].version, new_model.path)
        return replaced

    def watch(self, interval_s: float) -> None:
        """Call `refresh` every so many seconds, on a thread of its own, until `close`."""
        self._watcher = threading.Thread(
            target=self._watch, args=(interval_s,), name="deitlt-reload", daemon=True
        )
        self._watcher.start()

    def close(self) -> None:
        """End the watching thread."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()

    def _watch(self, interval_s: float) -> None:
        while not self._stop.wait(interval_s):
            self.refresh()

    def _take_over(self, new: dict[int, Model]) -> bool:
        """Put these models in their places, unless two folders would hold the same bundle then."""
        candidates = tuple(new.get(number, old) for number, old in enumerate(self._models))
        try:
            self._refuse_twins(candidates)
        except UsageError:
            return False
        for number, model in new.items():
            old = self._models[number].version
            logger.info("%s: version %s replaces %s", model.name, model.version, old)
        self._models = candidates  # one assignment: readers see the old tuple or the new
        return True

    def _warm(self, path: Path) -> Model:
        stamp = _stamp(path)  # before it is read: a change in between is seen the next time
        # Where a link leads now: all of a model comes from there, though the link may be moved.
        classifier = self._load(Path(os.path.realpath(path)))
        explainer = self._load_explainer(classifier.bundle)
        picture = BytesIO()
        Image.new("RGB", (32, 32)).save(picture, "PNG")
        for each in filter(None, (classifier, explainer)):
            each.predict_one(picture.getvalue())
        return Model(path, classifier, explainer, stamp)

    @staticmethod
    def _refuse_twins(models: Sequence[Model]) -> None:
        seen: dict[tuple[str, str], Path] = {}
        for model in models:
            key = (model.name, model.version)
            if key in seen:
                raise UsageError(f"{model.path} and {seen[key]} hold the same bundle")
            seen[key] = model.path


def _stamp(path: Path) -> Stamp:
    """What of a bundle changes when it is written again; zeros where there is none."""
    return _stamp_of(path / MANIFEST)


def _stamps(path: Path) -> dict[str, Stamp]:
    """The same of every file under a folder: a copy may bring the manifest before the others."""
    files: list[Path] = []
    with suppress(OSError):  # it is just being replaced, or its file server does not answer
        files = sorted(path.rglob("*"))
    return {str(file): _stamp_of(file) for file in files}


def _stamp_of(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:  # gone, or not ours to look at; who reads it will say so
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)
