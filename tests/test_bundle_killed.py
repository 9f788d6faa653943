"""A write of a bundle that is killed before any one of its changes to the file system."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deitlt.bundle import open_bundle, write_bundle
from deitlt.errors import BundleError
from tests.bundle_support import DIGITS, copy_of
from tests.checkout_support import ROOT

# Writes a copy of the digits bundle, with another card, and kills itself before the N-th change
# to the file system; exits with 0 if there are fewer.
WRITER = """
import os, signal, sys
from pathlib import Path
from deitlt.bundle import write_bundle
from tests.bundle_support import DIGITS, copy_of

output, overwrite, left = Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3])
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}

def count(event, arguments):
    global left
    if event in CHANGES:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def fill(folder):
    fields = copy_of(DIGITS)(folder)
    (folder / "README.md").write_text("another card")
    return fields

sys.addaudithook(count)
write_bundle(output, fill, overwrite=overwrite)
"""


def write_and_die(output: Path, *, overwrite: bool, change: int) -> bool:
    """Whether the writer was killed; False once it makes fewer than `change` changes."""
    command = [sys.executable, "-c", WRITER, str(output), str(overwrite), str(change)]
    code = subprocess.run(command, cwd=ROOT, timeout=60).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_every_change_to_the_file_system(overwrite: bool, tmp_path: Path) -> None:
    old = open_bundle(DIGITS).version
    seen = set()
    died, change = True, 0
    while died:
        change += 1
        home = tmp_path / str(change)
        output = home / "bundle"
        home.mkdir()
        if overwrite:
            shutil.copytree(DIGITS, output)
        died = write_and_die(output, overwrite=overwrite, change=change)
        if output.exists():
            seen.add("old" if open_bundle(output).version == old else "new")
        else:
            seen.add("none")
            stranded = (home / ".bundle.old").exists()
            assert stranded == overwrite
            if stranded:
                # Told at once, not after all the work; and the old bundle is back.
                with pytest.raises(BundleError, match="holds a bundle already"):
                    write_bundle(output, copy_of(DIGITS))
                assert open_bundle(output).version == old
        assert write_bundle(output, copy_of(DIGITS), overwrite=True).version == old
    assert change > 3
    assert seen == ({"old", "none", "new"} if overwrite else {"none", "new"})
    # The last writer was not killed: nothing of its own is left beside the bundle.
    assert [file.name for file in home.iterdir()] == ["bundle"]
