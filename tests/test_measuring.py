"""What benchmarks say of their run."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deitlt.cores import usable_cores
from deitlt.measuring import (
    Gpu,
    Steal,
    aligned,
    describe,
    first_gpu,
    format_steal,
    hardware,
    versions,
)


def test_steal_is_a_share_and_warned_of() -> None:
    assert 0 <= (Steal().share() or 0) <= 1
    warned = ["WARNING" in format_steal(share) for share in (0.04, 0.02, None)]
    assert warned == [True, False, False]


def test_steal_is_the_eighth_figure_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["cpu  10 0 10 70 0 0 0 10 5 0\n", "cpu  20 0 20 130 0 0 0 30 9 0\n"])
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: next(lines))
    assert Steal().share() == pytest.approx(20 / 100)  # guests' time is in the user's already


def test_hardware_and_versions_are_this_machine_s() -> None:
    assert hardware()["cores"] == usable_cores()
    gpu = SimpleNamespace(name="H9", total_memory=3 << 30)
    about = {"time": "now", "command": "python", "hardware": hardware(gpu)}
    found = versions(["numpy", "no-such-package"])
    assert found["numpy"] == np.__version__
    assert "no-such-package" not in found
    text = describe({**about, "versions": {**found, "cuda": None}}, "two threads")
    assert text.startswith("now  python\nH9, 3.0 GiB; ")
    assert "\ntwo threads\ndeitlt " in text
    assert "cuda" not in text


@pytest.mark.parametrize("failing", [None, "cuInit", "cuDeviceGet", "cuDeviceTotalMem_v2"])
def test_the_driver_names_the_gpu(monkeypatch: pytest.MonkeyPatch, failing: str | None) -> None:
    class Driver:
        """Fills in what it is handed, as NVIDIA's does, and returns 0 or an error's number."""

        def __getattr__(self, call: str) -> Any:
            return lambda *given: 100 if call == failing else self.answer(call, *given)

        def answer(self, call: str, *given: Any) -> int:
            if call == "cuDeviceGet":
                given[0]._obj.value = 7
                assert given[1] == 0
            elif call != "cuInit":
                assert given[-1].value == 7
            if call == "cuDeviceGetName":
                given[0].value = b"H9"
                assert given[1] == len(given[0])
            if call == "cuDeviceTotalMem_v2":
                given[0]._obj.value = 80 << 30  # more than an int holds
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert first_gpu() == (Gpu("H9", 80 << 30) if failing is None else None)


def test_columns_line_up() -> None:
    assert aligned([("", "ms", "note"), ("row", "12.5", "x")], left=(0, 2)) == [
        "       ms  note",
        "row  12.5  x",
    ]
