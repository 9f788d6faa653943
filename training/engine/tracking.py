"""What a run shows while it goes: a progress bar, lines for logs, and curves in TensorBoard."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Lines printed over a run, for logs that show no progress bar, and the longest silence, s: a short
# one at first, so that a run that is going to be stopped has said how fast it is.
MILESTONES = 10
SILENCE_S = 600
FIRST_SILENCE_S = 60
REFRESH_S = 2.0


class ProgressBar:
    """Images done, images a second and time left; now and then a line that stays."""

    def __init__(self, num_samples: int, epochs: int, epoch: int, visible: bool) -> None:
        self._num_samples, self._epochs, self._visible = num_samples, epochs, visible
        self._bar = tqdm(
            total=num_samples * epochs,
            initial=num_samples * epoch,
            unit="img",
            unit_scale=True,
            disable=None if visible else True,
        )
        self._started = self._shown = self._said = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def due(self) -> bool:
        """Whether it is time to look at the figures, which makes a GPU wait."""
        return time.monotonic() - self._shown > REFRESH_S

    def show(self, epoch: int, share: float) -> None:
        """Move to a share of an epoch."""
        self._shown = time.monotonic()
        self._bar.n = round((epoch + share) * self._num_samples)
        self._bar.set_postfix_str(f"epoch {epoch + 1}", refresh=True)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Move to the end of an epoch; a line at milestones and after a long silence."""
        epoch = row["epoch"]
        self._bar.n = epoch * self._num_samples
        self._bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)
        now = time.monotonic()
        silence = FIRST_SILENCE_S if now - self._started < SILENCE_S else SILENCE_S
        due = epoch % max(1, self._epochs // MILESTONES) == 0 or now - self._said > silence
        if self._visible and (due or epoch == self._epochs):
            self._said = now
            tqdm.write(_line(row, self._epochs))


class Curves:
    """The figures of results.csv as TensorBoard scalars; without a folder it writes nothing."""

    def __init__(self, folder: Path | None, epoch: int) -> None:
        self._folder, self._epoch = folder, epoch
        self._writer: Any = None

    def __enter__(self) -> "Curves":
        if self._folder is not None:
            # Loading it takes a second, and processes that write nothing do not need it.
            from torch.utils.tensorboard import SummaryWriter

            # Points after the resume point belong to epochs that will be trained again.
            self._writer = SummaryWriter(str(self._folder), purge_step=self._epoch + 1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Add the figures of one epoch; what cannot be written (a full disk) ends no run."""
        if self._writer is None:
            return
        try:
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    group = "validation" if name.startswith("val_") else "training"
                    title = f"{group}/{name.removeprefix('val_')}"
                    self._writer.add_scalar(title, value, row["epoch"])
            self._writer.flush()  # a killed run will not train this epoch again
        except OSError as error:
            reason = error.strerror or error
            print(f"warning: {self._folder}: no more curves ({reason})", file=sys.stderr)
            self._writer = None


def _line(row: dict[str, Any], epochs: int) -> str:
    figures = [
        f"{name.removeprefix('val_').replace('_balanced', '')} {100 * value:.1f}"
        for name, value in row.items()
        if name.endswith("_balanced") and value is not None
    ]
    balanced = f"  balanced validation accuracy: {', '.join(figures)} %" if figures else ""
    left = (epochs - row["epoch"]) * row["seconds"]
    time_left = f", {_duration(left)} left" if left else ""
    speed = f"  {row['images_per_s']:.0f} images/s{time_left}"
    return f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}{balanced}{speed}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
