"""The export benchmark: its whole run at the smallest scale, and the arithmetic in its table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deitlt.errors import RuntimeUnavailable
from deitlt.longtail import head_mid_tail
from deitlt.preprocess import PreprocessSpec
from deitlt.runtimes import CUDA_OPTIONS
from deitlt.student import DeiTLT, Size, StudentConfig
from deitlt.weights import save_weights
from export.benchmark import __main__ as benchmark
from export.benchmark import artefacts, fresh, operators, students
from export.benchmark.flops import plain_flops, pruned_flops
from export.benchmark.measure import Timing, Yardstick, pick_yardstick, take_turns
from export.benchmark.report import format_student
from export.benchmark.results import RowResult, StudentResult
from export.benchmark.rows import FLOAT32_FILE, PLAIN_FILE, ROWS, missing
from export.benchmark.runners import BoundOnnx, OnnxModel, Opening, _providers
from export.benchmark.students import Rightness, Student, batches, judge, made_up_images
from export.benchmark.targets import targets
from export.fuse import FusedStudent


@pytest.fixture(scope="module")
def student() -> Student:
    config = StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=5)
    return students.untrained(config, None, 8)


@pytest.fixture(scope="module")
def files(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    subject = artefacts.Subject(student.model, student.card, student.calibration, "cpu", folder)
    artefacts.write(subject, PLAIN_FILE)
    artefacts.write(subject, FLOAT32_FILE)
    return folder


def test_a_whole_quick_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["torch", "optimized", "float32", "int8", "torchscript", "fp16", "openvino-int8"]
    monkeypatch.setitem(artefacts.WRITERS, "model.torchscript", break_off)
    file = tmp_path / "figures.json"
    flags = ["--quick", "--threads", "1", "--batch-sizes", "1", "3", "--json", str(file)]
    assert benchmark.main([*flags, "--profile", "--rows", *asked]) == 0
    table = capsys.readouterr().out
    figures = json.loads(file.read_text())
    (result,) = figures["students"]

    # Every row is there or named with the reason why it is not.
    ran = {row["key"]: row for row in result["rows"]}
    named = {row["label"] for row in ran.values()} | set(result["skipped"])
    assert named == {row.label for row in ROWS.values()}
    here = {key for key in [*asked, "plain"] if missing(ROWS[key], "cpu") is None}
    assert set(ran) == here - {"torchscript"}
    assert result["skipped"][ROWS["torchscript"].label] == "it failed: could not"
    assert "needs --device cuda" in result["skipped"][ROWS["fp16"].label]
    assert result["skipped"][ROWS["pt2"].label] == "not in --rows"
    for label, why in result["skipped"].items():
        assert f"  skipped: {label}: {why}" in table.splitlines()

    check_figures(result, table)
    assert len(figures["targets"]) == 4
    assert all(f"{t['text']}: {t['found']}" in table for t in figures["targets"])
    assert figures["targets"][3]["met"] is None  # a nano student is not the tiny one
    assert result["bundle"]["torch_free"]
    assert list(result["operators"]) == [ROWS["float32"].label, ROWS["int8"].label]
    assert figures["command"].startswith("python -m export.benchmark --quick")


def check_figures(result: dict[str, Any], table: str) -> None:
    """Figures follow from the times they are made of, and the table shows them."""
    times = {size: iter(part) for size, part in parts(table).items()}
    baseline = next(row for row in result["rows"] if row["key"] == "plain")
    for row in result["rows"]:
        assert min(row["load_s"], row["peak_mib"] - 20, row["file_mb"] - 0.1) > 0
        assert set(row["batches"]) == {"1", "3"}
        for size, found in row["batches"].items():
            calls = np.concatenate(found["rounds_ms"])
            assert (len(found["rounds_ms"]), found["num_calls"]) == (3, len(calls))
            assert min(calls.min(), found["cpu_ms"]) > 0
            for name, share in (("p50_ms", 0.5), ("lower_quartile_ms", 0.25), ("p99_ms", 0.99)):
                assert found[name] == pytest.approx(np.quantile(calls, share))
            assert found["images_per_s"] == pytest.approx(int(size) / found["p50_ms"] * 1000)
            medians = medians_of(found["rounds_ms"])
            plain = medians_of(baseline["batches"][size]["rounds_ms"])
            assert found["ratio"] == pytest.approx(np.median(plain / medians))
            best_ms = np.concatenate(result["yardstick"]["rounds_ms"][size]).min()
            floor_ms = result["gflop"] * 1e9 * int(size) / (2 * 256**3) * best_ms
            assert found["share_of_floor"] == pytest.approx(floor_ms / found["p50_ms"])
            rounded = ("images_per_s", "p50_ms", "lower_quartile_ms", "p99_ms")
            assert next(times[size]) == [
                row["label"],
                *(f"{found[name]:.4g}" for name in rounded),
                str(found["num_calls"]),
                *f"{found['ratio']:.3f} {found['cpu_ms']:.4g} {found['cpu_ratio']:.3f}".split(),
                f"{found['share_of_floor']:.1%}",
            ]
    assert {row["key"]: row["same_top1"] for row in result["rows"]}["float32"] == 1
    assert baseline["batches"]["1"]["ratio"] == 1


def medians_of(rounds: list[list[float]]) -> Any:
    return np.array([np.median(calls) for calls in rounds])


def parts(table: str) -> dict[str, list[list[str]]]:
    """Lines of the table by batch size, cell by cell."""
    found: dict[str, list[list[str]]] = {}
    size = ""
    for line in table.splitlines():
        if line.startswith("  batch "):
            size = line.split()[1]
            found[size] = []
        elif size and line.startswith("    ") and line.endswith("%"):
            label, *cells = line.rsplit(maxsplit=9)
            found[size].append([label.strip(), *cells])
        elif line.startswith("  on "):
            break
    return found


def break_off(subject: artefacts.Subject) -> str:
    raise RuntimeError("could not\nbecause")


@pytest.mark.parametrize(("size", "img_size", "patch_size"), [
    ("pico", 16, 4), ("tiny", 224, 16), ("base", 224, 16),
])  # fmt: skip
def test_flops_are_those_that_torch_counts(size: Size, img_size: int, patch_size: int) -> None:
    config = StudentConfig(size=size, img_size=img_size, patch_size=patch_size, num_classes=10)
    with torch.device("meta"):
        model = DeiTLT(config).eval()
        fused = FusedStudent(model, PreprocessSpec(img_size))
        images = torch.empty(2, 3, img_size, img_size)
        pixels = torch.empty(2, img_size, img_size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as plain:
        model(images)
    assert plain.get_total_flops() == 2 * plain_flops(config)
    with FlopCounterMode(display=False) as ours:
        fused(pixels)
    assert ours.get_total_flops() == 2 * pruned_flops(config)
    assert pruned_flops(config) < plain_flops(config)


def test_a_ratio_is_of_the_same_round() -> None:
    # Twice as fast in each round, though the second round was ten times slower for both.
    fast = Timing(4, [[1.0, 1.2, 1.4], [12.0], [1.2]], [[1.0], [2.0], [1.0]])
    slow = Timing(4, [[2.4], [24.0], [2.4]], [[3.0], [6.0], [3.0]])
    assert fast.cpu_ratio(slow) == pytest.approx(3)
    assert fast.times_as_fast_as(slow) == pytest.approx(2)
    assert fast.images_per_s == pytest.approx(4 / 0.0012)


def test_turns_go_back_and_forth() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = take_turns(calls, 1, rounds=3, turn_s=0, warm_ups=1)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert [len(times[name].rounds_ms) for name in "abc"] == [3, 3, 3]
    filled = take_turns({"a": lambda: None}, 1, rounds=2, turn_s=1, warm_ups=2)
    assert [len(calls) for calls in filled["a"].rounds_ms] == [200, 200]


def test_the_yardstick_counts_what_it_does() -> None:
    assert pick_yardstick("cpu", 32, 1).flops == 2 * 32**3
    # The product takes 2 ms for 100 operations; 25 of them an image, 4 images: 2 of the row's 8 ms.
    stick = Yardstick("product", 100, lambda: None)
    product, row = Timing(4, [[5.0], [2.0]], []), Timing(4, [[8.0]], [])
    assert stick.share_of_floor(product, row, 25) == pytest.approx(0.25)


def result(ms: dict[str, dict[int, float]], size: str = "tiny") -> StudentResult:
    """A student whose rows took so long; the matrix product always takes 1 ms for 32 images."""
    made = StudentResult("s", size, "", 1, 1, Yardstick("product", 32, lambda: None))
    for key, times in ms.items():
        row = RowResult(key, 1, "", fresh.Fresh(1, 1), Rightness(1))
        row.timings = {batch: Timing(batch, [[time]], [[time]]) for batch, time in times.items()}
        made.rows.append(row)
        made.products |= {batch: Timing(batch, [[1.0]], [[1.0]]) for batch in times}
    return made


@pytest.mark.parametrize(("plain", "ours", "int8", "met"), [
    ({1: 10, 8: 115}, {1: 10, 8: 100}, {1: 5, 8: 50}, [True, True, True]),
    ({1: 10, 8: 114}, {1: 10.1, 8: 100}, {1: 5, 8: 50.5}, [False, False, False]),
    ({1: 10, 8: 114}, {1: 9, 8: 100}, {1: 5, 8: 40}, [False, True, True]),
    ({1: 10}, {1: 9}, {1: 5}, [None, True, None]),
])  # fmt: skip
def test_cpu_targets(
    plain: dict[int, float], ours: dict[int, float], int8: dict[int, float], met: list[bool | None]
) -> None:
    found = targets([result({"plain": plain, "float32": ours, "int8": int8})], "cpu")
    assert [target.met for target in found[:3]] == met
    words = {True: "met ", False: "not met ", None: "not measured "}
    assert all(str(target).startswith(words[target.met]) for target in found)


@pytest.mark.parametrize(("size", "load_s", "torch_free", "met"), [
    ("tiny", 0.99, True, True), ("tiny", 1.0, True, False), ("tiny", 0.1, False, False),
    ("small", 0.1, True, None),
])  # fmt: skip
def test_the_target_of_a_bundle(
    size: str, load_s: float, torch_free: bool, met: bool | None
) -> None:
    made = result({}, size)
    assert targets([made], "cpu")[-1].met is None
    made.bundle = fresh.BundleLoad(load_s, 3, torch_free)
    assert targets([made], "cpu")[-1].met is met


@pytest.mark.parametrize(("graph_ms", "met"), [(1.6, True), (1.7, False)])
def test_the_gpu_target_takes_the_best_fp16_row(graph_ms: float, met: bool) -> None:
    made = result({"float32": {32: 1.0}, "fp16": {32: 4.0}, "fp16-graph": {32: graph_ms}})
    assert targets([made], "cuda")[0].met is met
    assert "CUDA graph" in targets([made], "cuda")[0].found
    assert targets([result({"float32": {32: 1.0}})], "cuda")[0].met is None


def test_no_weight_is_zero(student: Student) -> None:
    assert all((parameter != 0).all() for parameter in student.model.parameters())
    again = students.untrained(student.model.config, None, 8)
    assert np.array_equal(again.expected, student.expected)


def test_the_last_batch_is_filled_up(student: Student, files: Path) -> None:
    images = made_up_images(5, 8, 0)
    assert np.array_equal(np.concatenate(batches(images, 3)), images[[0, 1, 2, 3, 4, 0]])
    runner = OnnxModel(opening(files / FLOAT32_FILE))
    assert judge(student, runner, student.pixels, 7) == Rightness(1.0)


def opening(path: Path, **more: Any) -> Opening:
    return Opening(**{"how": "onnx", "path": str(path), "device": "cpu", "threads": 1, **more})


def test_io_binding_gives_the_same_answers(student: Student, files: Path) -> None:
    bound = BoundOnnx(opening(files / FLOAT32_FILE, how="bound"))
    plain = OnnxModel(opening(files / FLOAT32_FILE))
    # Two batches of one size go through the same buffers, a third one has its own.
    for images in (student.pixels[:4], student.pixels[4:8], student.pixels[8:9]):
        actual = bound.logits(bound.prepare(images)())
        np.testing.assert_allclose(actual, plain.logits(plain.prepare(images)()), atol=1e-5)
    assert judge(student, bound, student.pixels, 3) == Rightness(1.0)
    # The plain export has no average of its own.
    mean = OnnxModel(opening(files / PLAIN_FILE))
    logits = mean.logits(mean.prepare(student.normalised())())
    np.testing.assert_allclose(logits, student.expected, atol=1e-4)


def test_a_trained_student_is_judged_on_labels(
    student: Student, files: Path, tmp_path: Path, class_tree: Callable[..., Path]
) -> None:
    save_weights(tmp_path / "student.safetensors", student.model, student.card)
    data = class_tree(tmp_path / "data", dict.fromkeys(student.card.classes, 3))
    labelled = students.trained(tmp_path, data, 10)
    assert labelled.labels is not None
    right = labelled.expected.argmax(axis=1) == labelled.labels
    tail = right[np.isin(labelled.labels, head_mid_tail(student.card.train_counts)["tail"])]
    found = judge(labelled, OnnxModel(opening(files / FLOAT32_FILE)), labelled.pixels, 4)
    assert found == Rightness(1.0, right.mean(), tail.mean())
    assert labelled.images == f"10 labelled images of {data} (all, int8 calibrated on them)"


def test_gpu_sessions_are_asked_for_as_documented(files: Path) -> None:
    cpu, cuda = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA"))
    graph = opening(files / FLOAT32_FILE, provider=cuda, graph=True)
    assert _providers(graph) == [(cuda, CUDA_OPTIONS | {"enable_cuda_graph": "1"}), cpu]


def test_rows_that_cannot_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(missing(row, "cpu") for row in ROWS.values() if row.devices == ("cuda",))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "needs a C++ compiler" in str(missing(ROWS["compile"], "cpu"))
    monkeypatch.setattr("export.benchmark.rows.find_spec", lambda name: None)
    assert "pip install openvino" in str(missing(ROWS["openvino-int8"], "cpu"))
    assert "CPU alone" in str(missing(ROWS["openvino-int8"], "cuda"))
    assert "for CPUs" in str(missing(ROWS["int8"], "cuda"))


def test_memory_is_that_of_the_fresh_process_alone(student: Student, files: Path) -> None:
    ballast = np.ones(400 * fresh.MIB // 8)  # resident here, not there
    np.save(files / "images.npy", student.pixels)
    found = fresh.run_row(opening(files / FLOAT32_FILE), files / "images.npy", 4)
    assert 20 < found.peak_mib < ballast.nbytes / fresh.MIB


def test_a_fresh_process_that_fails_says_its_last_line(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", made_up_images(1, 8, 0))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RuntimeUnavailable, match=r"model\.onnx"):
        fresh.run_row(opening(tmp_path / "model.onnx"), tmp_path / "images.npy", 1)


def test_shares_of_operators() -> None:
    events: list[dict[str, object]] = [
        {"name": f"{op}_kernel_time", "args": {"op_name": op}, "dur": duration}
        for op, duration in (("Add", 1), ("Gemm", 2), ("Gemm", 1))
    ]
    assert operators.shares([*events, {"name": "session_run", "dur": 9}]) == {
        "Gemm": 0.75,
        "Add": 0.25,
    }


def test_a_profile_that_saw_nothing_costs_no_figures() -> None:
    made = result({"float32": {1: 1.0}})
    made.operators["row"] = operators.shares([{"name": "session_run", "dur": 9}])
    assert "time of row goes\n    not known: the prof" in format_student(made.to_dict())


@pytest.mark.parametrize(("flags", "complaint"), [
    (["--threads", "0"], "--threads is 0; it must be at least 1"),
    (["--batch-sizes", "8", "8"], "--batch-sizes 8 8: each once, at least 1"),
    (["--batch-sizes", "0"], "--batch-sizes 0: each once, at least 1"),
    (["--json", "nowhere/figures.json"], "nowhere/figures.json: there is no such folder"),
    (["run", "--size", "tiny"], "a checkpoint has its own shape; leave out --size"),
    (["--num-classes", "1"], "--num-classes is 1; it must be at least 2"),
    (["no-such-run"], "no-such-run"),
    (["--quick", "--img-size", "30"], "--img-size 30 is not a multiple of --patch-size 4"),
    (["--quick", "--data", "no-such-data"], "no-such-data"),
    (["--device", "cuda"], "PyTorch sees no CUDA device here"),
    (["--rows", "fast"], "invalid choice: 'fast'"),
    (["--quik"], "--quik"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    flags: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        status: object = benchmark.main(flags)
    except SystemExit as stop:  # how argparse ends a program
        status = stop.code
    assert status == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert complaint in line
