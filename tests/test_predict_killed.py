"""SIGKILL at random moments of `deitlt predict`: the same command ends in the same file.

A process that has loaded everything forks for each run. In the fork every line of the modules that
write is counted, and at a given line it kills itself; writes come in two halves, so that lines are
torn. The classifier costs nothing, the rest is the real program. What is left after a power cut is
what had been flushed to the disk: that is played through in this process.
"""

import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deitlt.batch.output import Output
from deitlt.batch.rows import Layout
from deitlt.batch.sources import Source
from deitlt.errors import DecodeFailed
from tests.checkout_support import ROOT
from tests.predict_support import read_rows

NUM_KILLS = 20
TIMEOUT_S = 120  # only ever waited for where a test fails

# Reads lines "KILL_AT ARGUMENT..." (tab between them), answers each with "STATUS LINES_SEEN".
SERVER = """
import os, signal, sys
from io import FileIO
import numpy, pyarrow.parquet
pyarrow.array([""])  # this loads pandas, where it is installed
import deitlt.batch.formats, deitlt.batch.output, deitlt.commands.predict
from deitlt.cli import main
from tests.predict_support import hash_classifier

classifier = hash_classifier()
deitlt.commands.predict.open_model = lambda arguments, bundle: classifier
deitlt.batch.output.MAX_WAITING_CELLS = 60
os.fsync = lambda descriptor: None  # of use after a power cut, not after a kill

class Halves(FileIO):
    def write(self, data):
        return super().write(data[: max(1, len(data) // 2)])

deitlt.batch.formats.FileIO = Halves
WATCHED = ("batch/output.py", "batch/formats.py", "batch/file_lock.py", "deitlt/files.py")

def run(kill_at, arguments, answers):
    seen = 0
    def on_line(frame, event, argument):
        nonlocal seen
        seen += event == "line"
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_line
    def on_call(frame, event, argument):
        return on_line if frame.f_code.co_filename.endswith(WATCHED) else None
    sys.settrace(on_call)
    status = main(arguments)
    sys.settrace(None)
    os.write(answers, str(seen).encode())
    os._exit(status)

for line in sys.stdin:
    kill_at, *arguments = line.rstrip("\\n").split("\\t")
    reading, writing = os.pipe()
    if not (child := os.fork()):
        run(int(kill_at), arguments, writing)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    seen = os.read(reading, 100).decode() or "0"
    os.close(reading)
    print(os.waitstatus_to_exitcode(status), seen, flush=True)
"""

Run = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs `deitlt predict ...` until its line `kill_at`: exit status and lines seen."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answers = process.stdin, process.stdout

    def ask(*arguments: object, kill_at: int = -1) -> tuple[int, int]:
        asked.write("\t".join(map(str, [kill_at, "predict", *arguments])) + "\n")
        asked.flush()
        status, seen = map(int, answers.readline().split())
        return status, seen

    with process:
        try:
            yield ask
        finally:
            process.kill()


@pytest.fixture
def photos(tmp_path: Path, png: Callable[[int], bytes]) -> Path:
    """Eleven pictures, one of them damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(11):
        image = png(number)
        (folder / f"{number:02d}.png").write_bytes(image[:-60] if number == 6 else image)
    return folder


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("rows.csv", ["--topk", "3", "--experts"]),
        ("rows.csv", ["--topk", "2", "--wide"]),
        ("rows.jsonl", ["--topk", "2", "--output-type", "logit"]),
        ("rows.parquet", ["--topk", "2", "--experts"]),
    ],
)
def test_a_run_killed_anywhere_ends_in_the_same_file(
    name: str, flags: list[str], run: Run, photos: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole" / name
    whole.parent.mkdir()
    status, num_lines = run(photos, "--output", whole, *flags)
    assert status == 3
    assert num_lines > 300
    expected = read_rows(whole)
    assert len({row["filename"] for row in expected}) == 11
    moments = random.Random(name + str(flags))
    num_kills, num_gone_on = 0, 0
    for attempt in range(NUM_KILLS):
        output = tmp_path / str(attempt) / name
        output.parent.mkdir()
        command = [photos, "--output", output, *flags]
        kill_at = moments.randrange(1, num_lines + 1)
        status, _ = run(*command, kill_at=kill_at)
        while status == -9:
            num_kills += 1
            if (
                output.exists()
                and not (tmp_path / str(attempt) / f"{name}.partial/state.json").exists()
            ):
                break  # it was killed when all was done
            num_gone_on += 1
            # What goes on may be killed too.
            kill_at = moments.choice([-1, moments.randrange(1, num_lines + 1)])
            status, _ = run(*command, kill_at=kill_at)
        assert status in (3, -9), attempt
        assert read_rows(output) == expected
        if name != "rows.parquet":
            assert output.read_bytes() == whole.read_bytes()
    assert num_kills >= NUM_KILLS
    assert num_gone_on > NUM_KILLS // 2


class Disk:
    """What would be left of a folder after a power cut: flushed content under the present names."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._flushed: dict[int, bytes] = {}
        fsync = os.fsync

        def flushing(descriptor: int) -> None:
            fsync(descriptor)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                self._flushed[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

        monkeypatch.setattr(os, "fsync", flushing)

    def after_a_power_cut(self, folder: Path) -> None:
        """A copy of what is left."""
        for file in self._folder.rglob("*"):
            target = folder / file.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                target.write_bytes(self._flushed.get(file.stat().st_ino, b""))


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_a_power_cut_loses_no_row(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deitlt.batch.output.MAX_WAITING_CELLS", 5)
    names = [f"{number}.png" for number in range(9)]
    (tmp_path / "home").mkdir()
    disk = Disk(tmp_path / "home", monkeypatch)

    def write(folder: Path, after_each: Callable[[int], None]) -> None:
        output = Output(
            folder / f"rows.{format}", Layout(top_k=1), model_version="v", fingerprint={}
        )
        with output:
            sources = iter([Source(Path(name), name) for name in names])
            if not output.is_complete:
                for number, source in enumerate(output.remaining(sources)):
                    output.add(source, DecodeFailed("damaged"))
                    after_each(number)
            output.finish()

    def cut(number: int) -> None:
        disk.after_a_power_cut(tmp_path / f"left{number}")

    write(tmp_path / "home", cut)
    disk.after_a_power_cut(tmp_path / "left9")
    assert [row["filename"] for row in read_rows(tmp_path / f"left9/rows.{format}")] == names
    for number in range(9):
        left = tmp_path / f"left{number}"
        assert (left / f"rows.{format}.partial" / "state.json").read_bytes()
        write(left, lambda _: None)
        assert [row["filename"] for row in read_rows(left / f"rows.{format}")] == names
