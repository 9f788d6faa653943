"""The file a run writes: complete under its name, or not there, and a run that was ended goes on.

Until a run is complete its rows stand in the folder `<output>.partial`:

```
predictions.csv.partial/
  rows          the rows so far; of Parquet part-00000000.parquet and so on
  state.json    how many inputs they are of, where they end, and what run it is
  lock          held while a run is at work
```

Every few seconds rows are brought to the disk, then the state that counts them. What a killed run
wrote after its last state is cut off and done again, so that no row is lost, none stands twice and
none is torn.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from deitlt.batch.file_lock import FolderLock
from deitlt.batch.formats import ROWS, require_pyarrow, row_writer
from deitlt.batch.rows import Cells, Layout
from deitlt.batch.sources import Source
from deitlt.errors import ImageError, UsageError
from deitlt.files import move_into_place, sync, write_json
from deitlt.prediction import Prediction

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
STATE = "state.json"
STATE_KEYS = (
    *("run", "overwrite", "batch_size", "num_images", "errors", "names", "mark", "is_complete"),
)
# Rows are brought to the disk after so long, s, or when so many cells wait in memory.
SAVE_EVERY_S = 5.0
MAX_WAITING_CELLS = 1 << 18

Json = dict[str, Any]


@dataclass(slots=True)
class Summary:
    """What has been done.

    Attributes:
        num_images: inputs with rows.
        errors: how many of them failed, by code.
    """

    num_images: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def num_failed(self) -> int:
        """Inputs that failed."""
        return self.errors.total()


def check_output(output: Path, *, overwrite: bool) -> str:
    """The format of an output; refuses one that cannot be written, before any image is read.

    Raises:
        UsageError: a folder, an unknown format, a missing package, no folder to write into, or a
            file that exists and is not the output of a run to go on with, and `overwrite` is off.
    """
    format = FORMATS.get(output.suffix.lower())
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a .csv, .jsonl or .parquet file")
    if format is None:
        raise UsageError(f"{output}: the output must be a .csv, .jsonl or .parquet file")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: there is no such folder for the output")
    partial = partial_folder(output)
    if os.path.lexists(partial) and not partial.is_dir():
        raise UsageError(f"{partial}: is in the way; remove it, unfinished rows would stand there")
    if output.exists() and not overwrite and not (partial / STATE).exists():
        raise UsageError(f"{output}: exists already; pass --overwrite to replace it")
    if format == "parquet":
        require_pyarrow()
    return format


def partial_folder(output: Path) -> Path:
    """Where the rows stand until they are complete."""
    return output.with_name(output.name + ".partial")


class Output:
    """The rows of one run; a context manager, which keeps what is done if it is left early.

    Attributes:
        summary: what has been done.
        is_complete: there are no more rows to come.
        fingerprint: of this run, as it stands in the state.
        batch_size: images of a call of the model, for who continues the run to make the same ones;
            whoever runs it sets it, None until then.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        *,
        model_version: str,
        fingerprint: Json,
        overwrite: bool = False,
    ) -> None:
        """Look what there is; nothing is written before the context is entered.

        Args:
            path: the .csv, .jsonl or .parquet file.
            layout: its columns.
            model_version: stands in every row.
            fingerprint: plain JSON that differs between runs whose rows must not be mixed.
            overwrite: start anew and replace what is there, a finished output only at the end.
        """
        self.summary = Summary()
        self.is_complete = False
        self.batch_size: int | None = None
        self._path = path
        self._layout = layout
        self._model_version = model_version
        self.fingerprint: Json = json.loads(json.dumps(fingerprint))
        self._overwrite = overwrite
        self._folder = partial_folder(path)
        self._writer = row_writer(
            check_output(path, overwrite=overwrite), self._folder, layout.columns
        )
        self._mark = 0
        self._names = ""  # a chain of hashes over the names of the inputs that have rows
        self._waiting: list[tuple[str, str | None, list[Cells]]] = []
        self._num_cells = 0
        self._saved_at = time.monotonic()
        self._is_whole = False  # what is in memory agrees with itself

    def __enter__(self) -> "Output":
        """Lock it, and read how far an earlier run came.

        Raises:
            UsageError: another run is at work on it, or an unfinished one has other rows.
        """
        self._lock = FolderLock(self._folder)
        try:
            check_output(self._path, overwrite=self._overwrite)  # it may have come since
            state = None if self._overwrite else self._read_state()
            if state is None:
                self._discard()
            else:
                self._take_over(state)
            if not self.is_complete:
                self._writer.open(self._mark)
                self._save_state()
                self._is_whole = True
            sync(self._folder.parent)
        except BaseException:
            self._writer.close()
            self._lock.release(remove=not (self._folder / STATE).exists())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Save what is done, if it is not complete, and let others at it."""
        try:
            # Where saving itself was cut short, the state before it stands.
            if self._is_whole and not self.is_complete:
                self._save()
        except OSError:
            if error is None:
                raise
        finally:
            self._writer.close()
            if not self.is_complete and self.summary.num_images == 0:
                self._discard()  # nothing was done, so nothing is left
            self._lock.release(remove=not (self._folder / STATE).exists())

    def remaining(self, sources: Iterator[Source]) -> Iterator[Source]:
        """The sources that have no rows yet.

        Raises:
            UsageError: those that have rows are not the first of these.
        """
        names = ""
        for source in islice(sources, self.summary.num_images):
            names = _chained(names, source.filename)
        if names != self._names:
            raise UsageError(
                f"{self._folder}: the first {self.summary.num_images} inputs are not those that "
                "have rows there; bring them back, or pass --overwrite to start anew"
            )
        return sources

    def add(self, source: Source, result: Prediction | ImageError) -> None:
        """Take the rows of the next image."""
        rows = self._layout.rows(source.filename, result, self._model_version)
        code = result.code if isinstance(result, ImageError) else None
        # One step, so that Ctrl-C finds an image with all of its rows or with none.
        self._waiting.append((source.filename, code, rows))
        self._num_cells += sum(map(len, rows))
        late = time.monotonic() - self._saved_at >= SAVE_EVERY_S
        if late or self._num_cells >= MAX_WAITING_CELLS:
            self._save()

    def finish(self) -> None:
        """Give the rows their name: there are no more."""
        if not self.is_complete:
            self._save()
            self._is_whole = False
            with self._explained():
                self._writer.finish()
                self._save_state(is_complete=True)
            self.is_complete = True
        rows = self._folder / ROWS
        if rows.exists():
            move_into_place(rows, self._path)
        self._discard()

    def _discard(self) -> None:
        """Remove the rows, and last the state, which may say that all is done."""
        (self._folder / ROWS).unlink(missing_ok=True)
        for pattern in ("part-*.parquet", ".*.tmp"):  # and what was half written when it was killed
            for file in self._folder.glob(pattern):
                file.unlink()
        (self._folder / STATE).unlink(missing_ok=True)

    def _save(self) -> None:
        """Bring the waiting rows to the disk, then the state that counts them."""
        self._is_whole = False
        waiting, self._waiting, self._num_cells = self._waiting, [], 0
        with self._explained():
            self._mark = self._writer.append([row for _, _, rows in waiting for row in rows])
            for filename, code, _ in waiting:
                self._names = _chained(self._names, filename)
                self.summary.num_images += 1
                if code is not None:
                    self.summary.errors[code] += 1
            self._save_state()
        self._saved_at = time.monotonic()
        self._is_whole = True

    def _save_state(self, *, is_complete: bool = False) -> None:
        state = {
            "run": self.fingerprint,
            "overwrite": self._overwrite,
            "batch_size": self.batch_size,
            "num_images": self.summary.num_images,
            "errors": self.summary.errors,
            "names": self._names,
            "mark": self._mark,
            "is_complete": is_complete,
        }
        write_json(self._folder / STATE, state)

    def _read_state(self) -> Json | None:
        """How far an earlier run came; None if there was none, or no trace of its rows is left."""
        file = self._folder / STATE
        if not file.exists():
            return None
        try:
            state: Json = json.loads(file.read_bytes())
            is_lost = state["is_complete"] and not (self._folder / ROWS).exists()
            for key in STATE_KEYS:
                state[key]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file}: damaged; pass --overwrite to start anew") from error
        return None if is_lost and not self._path.exists() else state

    def _take_over(self, state: Json) -> None:
        """Be the run that this is the state of."""
        has_moved = state["is_complete"] and not (self._folder / ROWS).exists()
        changed = _difference(state["run"], self.fingerprint)
        is_foreign = bool(changed) if has_moved else not state["overwrite"]
        if self._path.exists() and is_foreign:
            raise UsageError(f"{self._path}: exists already; pass --overwrite to replace it")
        if changed:
            raise UsageError(
                f"{self._folder}: holds rows of another run ({changed}); repeat that command to go "
                "on with it, or pass --overwrite to start anew"
            )
        self._overwrite, self.batch_size = state["overwrite"], state["batch_size"]
        self.summary = Summary(state["num_images"], Counter(state["errors"]))
        self._names, self._mark = state["names"], state["mark"]
        self.is_complete = state["is_complete"]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Have an error of the disk say what is left and what to do."""
        try:
            yield
        except OSError as error:
            what = os.strerror(error.errno) if error.errno else str(error)
            text = f"{what}; finished rows are kept, the same command goes on"
            raise OSError(error.errno, text, str(self._folder)) from error


def _chained(names: str, filename: str) -> str:
    data = names.encode() + filename.encode("utf-8", "surrogateescape")
    return sha256(data).hexdigest()


def _difference(old: Json, new: Json) -> str:
    """What first differs between two runs, in words; empty if nothing does."""
    for key in [*new, *(key for key in old if key not in new)]:
        before, now = json.dumps(old.get(key)), json.dumps(new.get(key))
        if before != now:
            is_short = len(before) + len(now) < 80
            return f"{key} was {before} and is {now}" if is_short else f"{key} changed"
    return ""
