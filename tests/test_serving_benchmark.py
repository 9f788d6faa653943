"""The serving benchmark: its whole run at the smallest scale, and what it refuses."""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from deitlt.program import TERMINATED
from serving.benchmark import __main__ as benchmark
from serving.benchmark.servers import SERVERS
from serving.benchmark.trees import MARK, _environ, _processes
from serving.benchmark.windows import Round, take_round

# Tells a test's servers from those of a benchmark that runs beside it.
OWN = "BENCHMARK_OF_A_TEST"
ROWS = {"pure", "together", "ours", "fastapi", "batchable"}


def test_a_whole_quick_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN, str(tmp_path))
    absent = replace(SERVERS["litserve"], needs=("no_such_module",))
    monkeypatch.setitem(SERVERS, "litserve", absent)
    file = tmp_path / "figures.json"
    flags = ["--quick", "--servers", "ours", "fastapi", "batchable", "litserve", "triton"]
    flags += ["--concurrency", "4", "--seconds", "0.3", "--max-steal", "1", "--loads", "0.7"]
    assert benchmark.main([*flags, "--overload", "--soak", "0.02", "--json", str(file)]) == 0
    table = capsys.readouterr().out
    figures = json.loads(file.read_text())

    assert figures["command"].startswith("python -m serving.benchmark --quick")
    assert set(figures["servers"]) == ROWS - {"pure", "together"}
    assert figures["skipped"] == {
        "LitServe": "no_such_module is not installed; pip install 'deitlt[benchmark]'",
        "Triton, Python backend": "name its environment with --triton",
    }
    assert all(f"  skipped: {label}: {why}" in table for label, why in figures["skipped"].items())
    (rows,) = figures["closed"].values()
    assert set(rows) == ROWS
    for row in rows.values():
        check_row(row)
    for row in figures["servers"].values():
        check_conduct(row)
    assert figures["servers"]["ours"]["statuses"] == {
        "not an image": 415, "cut JPEG": 422, "no body": 400, "GET": 405, "unknown path": 404,
        "then a good one": 200,
    }  # fmt: skip
    for loads in figures["open"].values():
        assert set(loads) == {"0.7", "4.0"}
        answered = [set(load["statuses"]) for windows in loads.values() for load in windows]
        assert all(codes and codes <= {"200", "429", "503"} for codes in answered)
    assert set(figures["soak"]["statuses"]) == {"200"}
    for part in ("goals", "no claim where intervals overlap", "goodput at 4 times", "soak, ours"):
        assert part in table
    assert figures["complete"] is True
    assert not servers(tmp_path)


def test_what_was_measured_before_sigterm_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN, str(tmp_path))
    rounds: list[int] = []
    started = set[bool]()

    def take(*arguments: Any) -> Round:
        rounds.append(len(rounds))
        if len(rounds) == 6:  # of pure, together, ours, ours, together, pure
            started.add(bool(servers(tmp_path)))
            os.kill(os.getpid(), signal.SIGTERM)
        return take_round(*arguments)

    monkeypatch.setattr("serving.benchmark.run.take_round", take)
    file = tmp_path / "figures.json"
    flags = ["--quick", "--servers", "ours", "--concurrency", "2", "4", "--seconds", "0.1"]
    assert benchmark.main([*flags, "--max-steal", "1", "--json", str(file)]) == TERMINATED
    said, figures = capsys.readouterr(), json.loads(file.read_text())
    assert said.err.endswith("\nserving.benchmark: interrupted\n")
    assert "\n2 under way" in said.out
    assert "\nINTERRUPTED" in said.out
    assert {key: len(row["rounds"]) for key, row in figures["closed"]["2"].items()} == {
        "pure": 1, "together": 2, "ours": 2,
    }  # fmt: skip
    assert figures["complete"] is False
    assert started == {True}
    assert not servers(tmp_path)


def servers(folder: Path) -> set[int]:
    """Processes of the servers that run now of a benchmark of this test, not of one beside it."""
    own = f"{OWN}={folder}".encode()
    return {pid for pid in _processes() if own in (environ := _environ(pid)) and is_server(environ)}


def is_server(environ: Sequence[bytes]) -> bool:
    return any(text.startswith(MARK.encode()) for text in environ)


def check_row(row: dict[str, Any]) -> None:
    """Every round was kept, and its ratios follow from what was counted."""
    assert (len(row["rounds"]), row["dropped"], row["without_answers"]) == (2, [], 0)
    for taken in row["rounds"]:
        bare = mean(window["images"] / window["seconds"] for window in taken["bare"])
        rate = taken["images"] / taken["seconds"]
        assert taken["wall_ratio"] == pytest.approx(rate / bare)
        assert set(taken["statuses"]) == {"200"}
        assert taken["server_cpu_s"] > 0
    ratios = sorted(taken["wall_ratio"] for taken in row["rounds"])
    assert [row["wall_ratio"][key] for key in ("low", "high")] == ratios


def check_conduct(row: dict[str, Any]) -> None:
    assert row["answers"]["max_probability_difference"] < 1e-3
    assert row["answers"]["other_classes"] == 0
    assert row["start_s"] > 0
    assert None not in row["stops_s"]
    assert row["memory_mib"]["rss"] >= row["memory_mib"]["pss"] > 20
    assert row["statuses"]["then a good one"] == 200


@pytest.mark.parametrize(("flags", "complaint"), [
    ([], "name a bundle with --model, or try it with --quick"),
    (["--quick", "--rounds", "0"], "--rounds is 0; it must be positive"),
    (["--quick", "--seconds", "nan"], "--seconds is nan; it must be positive"),
    (["--quick", "--concurrency", "-1"], "--concurrency must not be negative"),
    (["--quick", "--loads", "0"], "--loads must be over 0 and at most 10 times capacity"),
    (["--quick", "--soak", "-1"], "--soak is -1; it must be 0 to 1440 minutes"),
    (["--quick", "--max-steal", "3"], "--max-steal is 3; it must be from 0 to 1"),
    (["--quick", "--json", "no/file"], "there is no such folder to write it in"),
    (["--quick", "--data", "no-such-data"], "no-such-data: no image file in it"),
    (["--quick", "--variant", "int9"], "int9"),
    (["--model", "no-such-bundle"], "no-such-bundle"),
    (["--quick", "--triton", "no-such-env"], "no-such-env: no virtual environment that runs"),
    (["--quick", "--servers", "ray"], "invalid choice: 'ray'"),
])  # fmt: skip
def test_a_mistake_is_one_line(flags: list[str], complaint: str, capfd: Any) -> None:
    try:
        status: object = benchmark.main(flags)
    except SystemExit as stop:  # how argparse ends a program
        status = stop.code
    assert status == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(("serving.benchmark: ", "python -m serving.benchmark: "))
    assert complaint in line
