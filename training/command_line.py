"""How the training programs read their command lines: a recipe's name, then its fields as flags."""

import difflib
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from deitlt.errors import UsageError
from deitlt.program import INTERRUPTED as INTERRUPTED_STATUS
from deitlt.program import WRONG_USE
from deitlt.program import run_program as end_in_one_line
from training.config import Recipe, kebab
from training.engine.distributed import EndedElsewhere, say_failure, speaks
from training.engine.stopping import Stopped

R = TypeVar("R", bound=Recipe)

# What a training program says when Ctrl-C comes before or after the steps.
INTERRUPTED = "interrupted; continue with --resume"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a training program is told besides the recipe."""

    data: Path
    """Folder of class folders (with train/, val/, test/ above them or not), a CSV with
    image_path,label[,split][,group], or a folder with list files (ImageNet-LT, iNaturalist)."""
    output: Path
    """Run folder to write."""
    resume: bool = False
    """Continue the run in --output where it stopped."""
    overwrite: bool = False
    """Start anew over the run in --output."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    workers: Annotated[int | None, tyro.conf.arg(aliases=["-j"])] = None
    """Processes that decode and crop images too large or too uneven to live on the training device;
    0 does it in the training process. By default 0 on a CPU; GPUs share all cores."""
    compile: bool | None = None
    """Students: torch.compile; teachers: the step as one CUDA graph. By default on a GPU."""
    deterministic: bool = False
    """GPU: only kernels whose results repeat to the last bit, so that a resumed run is exactly the
    uninterrupted one. Slower; a CPU always repeats."""


def run_program(
    program: str,
    argv: Sequence[str] | None,
    body: Callable[[list[str]], int | None],
    *,
    interrupted: str = "interrupted",
) -> int:
    """Run a program's body; a user's mistake becomes one line on stderr.

    Args:
        program: its name, which starts the line.
        argv: arguments; those of the process by default.
        body: takes the arguments; may return an exit status of its own.
        interrupted: what Ctrl-C leaves to say.

    Returns:
        The body's status or 0; 2 for a user's mistake; 130 for Ctrl-C and 143 for SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # What Pillow warns of, as of a broken EXIF block, is decoded all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")

    def checked() -> int | None:
        try:
            return body(words)
        except EndedElsewhere:
            return WRONG_USE
        except torch.OutOfMemoryError as error:
            advice = "train with a smaller --micro-batch-size (gradients add up) or a smaller model"
            raise UsageError(f"the GPU's memory is full; {advice}") from error
        except RuntimeError as error:
            if (remedy := _remedy(error)) is None:
                raise
            raise UsageError(f"{str(error).splitlines()[0].strip('. ')}; {remedy}") from error
        except Stopped as stop:
            if speaks():  # of many processes one does
                print(f"{program}: {stop}", file=sys.stderr)
            return 128 + stop.signal_number
        except KeyboardInterrupt:
            if speaks():
                raise
            return INTERRUPTED_STATUS

    return end_in_one_line(program, checked, interrupted=interrupted, say=say_failure)


def _remedy(error: RuntimeError) -> str | None:
    """What to do where the machine has failed; None if the program has."""
    if str(error).startswith("DataLoader worker"):
        return "allow more memory (Docker: --shm-size) or pass fewer --workers, then --resume"
    # Of a GPU that is gone, or of a kernel: then the traceback of where it was noticed misleads.
    if str(error).startswith("CUDA error") and os.environ.get("CUDA_LAUNCH_BLOCKING") != "1":
        return "train on with --resume; if it comes again, CUDA_LAUNCH_BLOCKING=1 shows where"
    return None


def pick_recipe(
    program: str, argv: list[str], recipes: dict[str, Callable[[], R]]
) -> tuple[R, list[str]]:
    """The recipe named first on the command line, and the arguments after it.

    Raises:
        UsageError: no such recipe.
        SystemExit: help was asked for.
    """
    if not argv:
        raise UsageError(f"name a recipe: {', '.join(recipes)}; --help tells what they are")
    if argv[0] in ("-h", "--help"):
        print(f"usage: python -m {program} RECIPE --data DATA --output RUN [options]\n\nrecipes:")
        for name, make in recipes.items():
            print(f"\n  {name}\n{textwrap.indent(_docstring(make), '    ')}")
        print(f"\nAll options of a recipe: python -m {program} RECIPE --help")
        raise SystemExit(0)
    if argv[0] not in recipes:
        raise UsageError(
            f"no recipe {argv[0]!r}{_hint(argv[0], recipes)}; there are: {', '.join(recipes)}"
        )
    return recipes[argv[0]](), argv[1:]


def parse(program: str, kind: type[Any], argv: list[str], **defaults: Any) -> Any:
    """An instance of the dataclass `kind` from flags, by tyro.

    Raises:
        UsageError: an unknown flag, a missing one, or a value that does not fit; in one line.
        SystemExit: help was asked for.
    """
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            command, unknown = tyro.cli(
                tyro.conf.configure(tyro.conf.OmitArgPrefixes)(kind),
                args=argv,
                prog=f"python -m {program}",
                default=kind(**{**_required(kind), **defaults}),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_first_sentence(complaint.getvalue())) from None
    if unknown and not unknown[0].startswith("-"):
        raise UsageError(
            f"{unknown[0]!r} belongs to no option; a switch has no value, it is --NAME or "
            "--no-NAME; see --help"
        )
    if unknown:
        known = [f"--{kebab(f.name)}" for f in fields(kind) if f.name != "recipe"]
        known += [f"--{kebab(f.name)}" for f in fields(defaults.get("recipe", kind))]
        raise UsageError(f"no option {unknown[0]!r}{_hint(unknown[0], known)}; see --help")
    return command


def _required(kind: type[Any]) -> dict[str, Any]:
    return {f.name: tyro.MISSING for f in fields(kind) if f.default is MISSING}


def _first_sentence(panel: str) -> str:
    """The message inside tyro's panel: what stands between its first two rules or frame lines."""
    lines = [line.strip(" │|") for line in panel.splitlines()]
    rules = [
        i for i, line in enumerate(lines) if line[:1] == "╭" or (line and not line.strip("-─"))
    ]
    body = lines[rules[0] + 1 : rules[1] if len(rules) > 1 else None] if rules else lines
    return " ".join(line for line in body if line) or "wrong command line; see --help"


def _hint(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _docstring(make: Callable[[], Any]) -> str:
    return textwrap.dedent("    " + (make.__doc__ or "").strip())
