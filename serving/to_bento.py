"""Build a Bento that carries the bundles of `DEITLT_MODEL`.

DEITLT_MODEL=bundles/quick python -m serving.to_bento

`bentoml build` alone packs the checkout, and with it the bundle that comes with the package. This
program packs a copy of it that has the bundles in `serving/bundles/`, where the service looks when
`DEITLT_MODEL` is unset.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deitlt.bundle import FLOAT32, open_bundle
from deitlt.program import OneLineParser, run_program
from serving.settings import PACKED, Settings

CHECKOUT = Path(__file__).resolve().parents[1]
# What `tool.bentoml.build` in pyproject.toml includes, and itself.
PARTS = ("deitlt", "serving", "pyproject.toml", "README.md", "LICENSE")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the Bento; BentoML prints its tag.

    Returns:
        0; 2 for a bundle that cannot be used; else BentoML's own status.
    """
    parser = OneLineParser(prog="serving.to_bento", description=__doc__)
    parser.parse_args(argv)
    return run_program("serving.to_bento", lambda: build(Settings.from_environ(os.environ)))


def build(settings: Settings) -> int:
    """Pack the service with the bundles of `settings`; the exit status of `bentoml build`.

    Raises:
        BundleError: a bundle is missing, damaged or has no such variant.
    """
    for path in settings.models:
        open_bundle(path).artefact(settings.variant or FLOAT32)
    with tempfile.TemporaryDirectory(prefix="deitlt-bento-") as name:
        folder = Path(name)
        for part in PARTS:
            source = CHECKOUT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / part)
        shutil.rmtree(folder / "serving" / PACKED, ignore_errors=True)
        for number, path in enumerate(settings.models):
            # The service sorts them, and the first is the default.
            shutil.copytree(path, folder / "serving" / PACKED / f"{number:03}-{path.name}")
        # The service is imported from the copy, not from wherever PYTHONPATH leads.
        environ = {**os.environ, "PYTHONPATH": name}
        command = [sys.executable, "-m", "bentoml", "build"]
        return subprocess.run(command, cwd=folder, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
