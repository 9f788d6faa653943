"""`deitlt inspect`: say what is in a bundle, and check it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from deitlt.bundle import default_bundle, open_bundle
from deitlt.errors import RuntimeUnavailable, UsageError
from deitlt.golden import check_golden
from deitlt.program import OK, SOME_FAILED


def add_to(commands: Any) -> None:
    """Add the parser of this subcommand."""
    parser = commands.add_parser("inspect", help="say what is in a bundle")
    parser.add_argument("model", type=Path, nargs="?", default=None, help="bundle folder")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the golden images through every artefact and compare with torch",
    )
    parser.add_argument("--variant", default=None, help="verify this artefact alone")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=None,
        help="where to verify (default cpu)",
    )
    parser.set_defaults(run=run, when_interrupted="nothing was written")


def run(arguments: argparse.Namespace) -> int:
    """Describe, and verify if asked to; returns 0, or 3 if an artefact was not checked."""
    if not arguments.verify and (arguments.variant or arguments.device):
        raise UsageError("--variant and --device say what to verify; add --verify")
    bundle = open_bundle(arguments.model or default_bundle())
    print(bundle.describe())
    if not arguments.verify:
        return OK
    code = OK
    for variant in [arguments.variant] if arguments.variant else bundle.variants:
        try:
            print(check_golden(bundle, variant, device=arguments.device or "cpu"))
        except RuntimeUnavailable as error:
            if arguments.variant:
                raise
            print(f"deitlt: {variant}: not checked: {error}", file=sys.stderr)
            code = SOME_FAILED
    return code
