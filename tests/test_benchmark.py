"""The training benchmark: its whole run at the smallest scale, and the arithmetic in its table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from deitlt.student import DeiTLT, Size, StudentConfig
from training.benchmark import __main__ as benchmark
from training.benchmark.baseline import _posterize
from training.benchmark.images import make_cifar_like
from training.benchmark.measure import Row, Target, forward_flops, matrix_rate, training_flops
from training.benchmark.report import format_rows
from training.recipes.students import cifar
from training.recipes.teachers import cifar as teacher_cifar

ROWS = [
    ("device", "matrix product, float32, 512 x 512", None),
    ("teacher", "SAM step of 8, eager", None),
    ("teacher", "epoch of 8 steps, measured, eager", None),
    ("teacher", "200 epochs of CIFAR-10-LT, projected, eager", None),
    ("student pico", "whole step", "conventional pipeline"),
    ("student pico", "conventional pipeline", None),
    ("student pico", "model FLOPs", "matrix product, float32, 512 x 512"),
    ("student pico", "views alone", "whole step"),
    ("student pico", "teacher's labels alone", "whole step"),
    ("student pico", "student forward and backward alone", "whole step"),
    ("student pico", "optimiser alone", "whole step"),
    ("student pico", "views on the device", "timm transforms (-j 1)"),
    ("student pico", "timm transforms (-j 1)", None),
    ("student pico", "peak memory", None),
    ("streaming", "worker processes (-j 1)", "one core"),
    ("streaming", "one core", None),
]


def test_a_whole_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--device", "cpu", "--workers", "1", "--output", str(file)]
    assert benchmark.main([*arguments, "--at-once", "2"]) == 0
    report = json.loads(file.read_text())
    rows = {(row["part"], row["name"]): row for row in report["rows"]}
    assert [(*key, row["baseline"]) for key, row in rows.items()] == ROWS
    for row in rows.values():
        assert min(row["samples"]) > 0
        assert row["value"] == pytest.approx(np.median(row["samples"]))
        if row["baseline"] is not None:
            assert row["ratio"] == pytest.approx(row["value"] / row["baseline_value"])

    whole, conventional = (rows["student pico", name] for _, name, _ in ROWS[4:6])
    assert whole["baseline_value"] == conventional["value"]
    assert rows["student pico", "views alone"]["baseline_value"] == pytest.approx(
        np.median([1000 * report["scale"]["batch_size"] / rate for rate in whole["samples"]])
    )
    epoch_s = rows["teacher", "epoch of 8 steps, measured, eager"]["value"]
    minutes = rows["teacher", "200 epochs of CIFAR-10-LT, projected, eager"]
    assert minutes["value"] == pytest.approx(epoch_s / 64 * 12_406 * 200 / 60)
    targets = {row["target"]: row["target_met"] for row in rows.values() if row["target"]}
    assert targets == {"ratio at least 3": None, "at most 3 min": None}

    assert report["command"].startswith("python -m training.benchmark --quick")
    assert report["hardware"]["cores"] >= 1
    assert torch.__version__.startswith(report["versions"]["torch"])
    table = capsys.readouterr().out
    assert all(name in table for _, name, _ in ROWS)
    assert table.count("needs a GPU") == 2


def test_what_was_measured_before_it_is_stopped_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_student", stop)
    file = tmp_path / "figures.json"
    assert benchmark.main(["--quick", "--device", "cpu", "--output", str(file)]) == 130
    written = json.loads(file.read_text())["rows"]
    assert [(row["part"], row["name"], row["baseline"]) for row in written] == ROWS[:4]
    said = capsys.readouterr().err
    assert all(f"  {name}: " in said for _, name, _ in ROWS[:4])
    assert said.endswith("interrupted; parts above are whole\n")


@pytest.mark.parametrize(("size", "img_size", "patch_size"), [
    ("pico", 16, 4), ("tiny", 224, 16), ("base", 224, 16),
])  # fmt: skip
def test_flops_are_those_that_torch_counts(size: Size, img_size: int, patch_size: int) -> None:
    config = StudentConfig(size=size, img_size=img_size, patch_size=patch_size, num_classes=10)
    with torch.device("meta"):
        model, images = DeiTLT(config), torch.empty(2, 3, img_size, img_size)
    with FlopCounterMode(display=False) as forward:
        model(images)
    assert forward.get_total_flops() == 2 * forward_flops(config)
    with FlopCounterMode(display=False) as both:
        torch.stack(model(images)).sum().backward()
    # The convention counts a gradient of the pixels, which nobody computes.
    assert both.get_total_flops() == pytest.approx(2 * training_flops(config), rel=0.02)


def row(samples: list[float]) -> Row:
    return Row(part="p", name="n", unit="images/s", samples=samples)


def test_a_row_is_compared_with_its_baseline() -> None:
    compared = row([30.0, 36.0, 31.0]).against(row([10.0, 9.0, 11.0]))
    assert compared.value == 31
    assert compared.spread == pytest.approx(6 / 31)
    assert compared.ratio == pytest.approx(3.1)
    assert compared.baseline == "n"
    assert row([1.0]).ratio is None


@pytest.mark.parametrize(("met", "words"), [
    (True, "ratio at least 3: met"),
    (False, "ratio at least 3: not met"),
    (None, "ratio at least 3: needs a GPU"),
])  # fmt: skip
def test_the_table_says_whether_a_target_is_met(met: bool | None, words: str) -> None:
    target = Target("ratio at least 3", met)
    line = Row(part="p", name="n", unit="images/s", samples=[1.0], target=target)
    assert format_rows([line]).splitlines()[3].endswith(words)


def test_the_yardstick_is_the_best_sample() -> None:
    yardstick = matrix_rate(torch.device("cpu"), 32, 3)
    assert len(yardstick.samples) == 1
    assert yardstick.value > 0


def test_on_a_gpu_the_work_is_that_of_the_recipes() -> None:
    command = benchmark.BenchmarkCommand()
    scale = benchmark.pick_scale(command, "cuda")
    assert [benchmark.student_recipe(scale, "base")] == [cifar()]
    assert scale.teacher_batch == teacher_cifar().batch_size
    quick = benchmark.pick_scale(benchmark.BenchmarkCommand(quick=True), "cuda")
    assert quick.batch_size == scale.batch_size
    assert quick.repeats < scale.repeats


def test_synthetic_images_are_on_disk_as_they_are_in_memory(tmp_path: Path) -> None:
    synthetic = make_cifar_like(tmp_path, 110)
    assert synthetic.images.counts()[[0, -1]].tolist() == [110, 1]
    image = np.asarray(Image.open(synthetic.images.paths[7]))
    assert (image == synthetic.pixels[7]).all()


def test_the_baseline_can_posterize_to_black() -> None:
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    assert np.asarray(_posterize(image, 0)).max() == 0
    assert np.asarray(_posterize(image, 1))[0, 0].tolist() == [128, 0, 0]


@pytest.mark.parametrize(("arguments", "complaint"), [
    (["--workers", "0"], "--workers must be positive, not 0"),
    (["--output", "nowhere/figures.json"], "nowhere/figures.json: there is no such folder"),
    (["--micro-batch-size", "7"], "--batch-size 64 is not a multiple of --micro-batch-size 7"),
    (["--size", "huge"], "huge"),
    (["--quik"], "no option '--quik' (did you mean --quick?)"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--device", "cpu", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]
