"""kill -9 during an export: no bundle, or the old one whole, and the next export works."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deitlt.bundle import open_bundle, write_bundle
from deitlt.files import new_folder, restore_stranded
from tests.bundle_support import copy_of
from tests.checkout_support import ROOT

# `export.to_bundle` that says when it comes to a place, and waits there to be killed.
STOPPED = """
import os, sys, time
from pathlib import Path
place = sys.argv.pop(1)

def stop(*_, **__):
    print("here", flush=True)
    time.sleep(600)

def stop_after(function):
    def run(*arguments, **named):
        function(*arguments, **named)
        stop()
    return run

import deitlt.files, export.bundle_writer, export.to_onnx
if place == "before anything is written":
    export.bundle_writer.write_golden = stop
elif place == "in the middle of the graph":
    export.to_onnx.onnx.save = lambda graph, path: (Path(path).write_bytes(b"half"), stop())
elif place == "between the files":
    export.bundle_writer.write_json = stop_after(export.bundle_writer.write_json)
elif place == "before the folder gets its name":
    rename = Path.rename
    named = lambda target: Path(target).name == "bundle"
    Path.rename = lambda self, target: stop() if named(target) else rename(self, target)
from export.to_bundle import main
sys.exit(main(sys.argv[1:]))
"""
PLACES = [
    "before anything is written",
    "in the middle of the graph",
    "between the files",
    "before the folder gets its name",
]


def killed_at(
    place: str, run: Path, output: Path, data: Path, *options: str, by: int = signal.SIGKILL
) -> tuple[int, str]:
    """Export, and kill it where it says it is; its exit status, and what it said of that."""
    where = ["--output", str(output), "--data", str(data), "--max-images", "20", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, place, str(run), *where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "here\n", process.stderr.read()
    finally:
        os.kill(process.pid, by)
        _, said = process.communicate()
    return process.returncode, said


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_export_leaves_no_bundle(
    place: str, fitted_run: Path, digits: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    status, _ = killed_at(place, fitted_run, output, digits)
    assert status == -signal.SIGKILL
    assert not output.exists()
    assert [file.name[:8] for file in tmp_path.iterdir()] == [".bundle."]
    restore_stranded(output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", PLACES[1:3])
def test_a_stopped_export_says_so_and_leaves_nothing(
    place: str, fitted_run: Path, digits: Path, tmp_path: Path
) -> None:
    stopped = killed_at(place, fitted_run, tmp_path / "bundle", digits, by=signal.SIGTERM)
    assert stopped == (143, "export: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_export_loses_nothing_of_the_old_bundle(
    place: str, fitted_run: Path, digits: Path, bundle_path: Path
) -> None:
    old = open_bundle(bundle_path).version
    killed_at(place, fitted_run, bundle_path, digits, "--overwrite")
    if place != PLACES[-1]:
        assert open_bundle(bundle_path).version == old
        return
    # Between two renames: it waits under another name, and the next export finds it there.
    aside = bundle_path.with_name(f".{bundle_path.name}.old")
    assert open_bundle(aside).version == old
    with pytest.raises(RuntimeError):
        write_bundle(bundle_path, fails, overwrite=True)
    assert open_bundle(bundle_path).version == old
    assert not aside.exists()


def fails(folder: Path) -> dict[str, object]:
    raise RuntimeError(folder)


def test_the_next_export_works(tmp_path: Path, bundle_path: Path) -> None:
    target = tmp_path / "next" / "bundle"
    target.parent.mkdir()
    shutil.copytree(bundle_path, target.with_name(".bundle.old"))
    (target.parent / ".bundle.dead").mkdir()
    written = write_bundle(target, copy_of(bundle_path), overwrite=True)
    assert open_bundle(target) == written
    assert not target.with_name(".bundle.old").exists()


def test_what_another_still_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path, overwrite=False) as first:
        (first / "file").touch()
        restore_stranded(path)
        assert (first / "file").exists()
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "file"]


def test_a_link_to_a_bundle_may_be_replaced_again_and_again(
    tmp_path: Path, bundle_path: Path
) -> None:
    link = tmp_path / "linked"
    link.symlink_to(bundle_path)
    for _ in range(2):
        with new_folder(link, overwrite=True) as folder:
            (folder / "new").touch()
        assert [file.name for file in link.iterdir()] == ["new"]
    assert (bundle_path / "model.onnx").is_file()
    assert not link.with_name(".linked.old").is_symlink()
