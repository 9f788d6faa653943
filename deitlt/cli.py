"""The `deitlt` command; each subcommand is a module of `deitlt.commands`."""

import sys
from collections.abc import Sequence

from deitlt import __version__
from deitlt.commands import evaluate, inspect, predict
from deitlt.program import OneLineParser, run_program, sigterm_raises


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0 if all went well, 2 for wrong use, 3 if some images could not be classified or some
        artefacts not be checked, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads what
        is printed.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(words)
    arguments.command = ["deitlt", *words]
    with sigterm_raises():  # as process 1 of a container, it would not end at all otherwise
        return run_program(
            "deitlt",
            lambda: arguments.run(arguments),
            interrupted=f"interrupted; {arguments.when_interrupted}",
        )


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="deitlt", description="Long-tailed image classification with a DeiT-LT bundle."
    )
    parser.add_argument("--version", action="version", version=f"deitlt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (predict, evaluate, inspect):
        command.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
