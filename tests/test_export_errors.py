"""Wrong input or a full disk at export: one line, status 2, and nothing of the old is lost."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from deitlt.bundle import open_bundle
from deitlt.student import PlainViT, StudentConfig, load_student
from deitlt.weights import load_tensors, save_tensors
from tests.checkout_support import ROOT
from tests.export_support import STUDENT, card_of, export, save_student

# Writing more than so many bytes into a file fails in this process, as on a full disk.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
from export.to_bundle import main
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""
Refusal = Callable[..., str]


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def refusal(
    fitted_run: Path,
    digits: Path,
    whole_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Refusal:
    """The line with which an export is refused; checks that nothing is written and nothing lost."""

    def ask(*options: str, run: Path = fitted_run, data: Path = digits, old: bool = True) -> str:
        output = tmp_path / "out" / "bundle"
        if old:
            shutil.copytree(whole_bundle, output)
            options = (*options, "--overwrite")
        before = content(output.parent) if old else {}
        capsys.readouterr()
        try:
            status = export(run, output, data, *options)
        except SystemExit as stopped:  # the parser's own
            status = int(str(stopped.code))
        captured = capsys.readouterr()
        assert status == 2, captured.err
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert content(output.parent) == before if old else not output.exists()
        return captured.err

    return ask


def rewrite(run: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run whose tensors were changed and whose card was not."""
    target.mkdir()
    with safe_open(str(run / STUDENT), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    change(tensors)
    save_file(tensors, str(target / STUDENT), header)
    return target


def test_a_checkpoint_of_something_else(refusal: Refusal, fitted_run: Path, tmp_path: Path) -> None:
    config = StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10, distilled=False)
    plain = PlainViT(config)
    _, card = load_student(fitted_run)
    card = card_of(plain, card.preprocess)
    baseline = save_student(tmp_path / "plain", plain, card)
    assert "plain transformer, a baseline without a DIST expert" in refusal(run=baseline)


@pytest.mark.parametrize("old", [True, False])
def test_a_checkpoint_without_the_tail_experts_head(
    refusal: Refusal, fitted_run: Path, tmp_path: Path, old: bool
) -> None:
    def behead(tensors: dict[str, Any]) -> None:
        del tensors["head_dist.weight"]

    run = rewrite(fitted_run, tmp_path / "headless", behead)
    assert "its tensors do not fit its own card" in refusal(run=run, old=old)


def test_a_checkpoint_that_is_not_finite(
    refusal: Refusal, fitted_run: Path, tmp_path: Path
) -> None:
    def diverge(tensors: dict[str, Any]) -> None:
        tensors["norm.bias"][0] = float("nan")

    run = rewrite(fitted_run, tmp_path / "diverged", diverge)
    assert "diverged: NaN or infinite numbers in norm.bias" in refusal(run=run, old=False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"architecture": {"patch_size": 0}}, "its tensors do not fit its own card"),
        ({"architecture": {"img_size": 0}}, "its tensors do not fit its own card"),
        ({"preprocess": {"img_size": 0}}, "its card was written by another version"),
        ({"preprocess": {"crop_pct": 0}}, "its card was written by another version"),
        ({"preprocess": {"mean": [float("nan"), 0, 0]}}, "its card was written by another version"),
    ],
)
def test_a_forged_card(
    refusal: Refusal, fitted_run: Path, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    tensors, card = load_tensors(fitted_run / STUDENT)
    for name, part in fields.items():
        card[name] |= part
    save_tensors(tmp_path / STUDENT, tensors, card)
    assert reason in refusal(run=tmp_path / STUDENT, old=False)


@pytest.mark.parametrize("count", [9, 11])
def test_class_names_that_do_not_match_the_head(
    refusal: Refusal, fitted_run: Path, tmp_path: Path, count: int
) -> None:
    model, card = load_student(fitted_run)
    names = [str(i) for i in range(count)]
    wrong = card_of(model, card.preprocess, classes=names, train_counts=[5] * count)
    run = save_student(tmp_path / "wrong", model, wrong)
    assert f"names {count} classes and its head has 10" in refusal(run=run)


def test_counts_of_other_classes_than_the_head_has(
    refusal: Refusal, fitted_run: Path, tmp_path: Path
) -> None:
    model, card = load_student(fitted_run)
    wrong = card_of(model, card.preprocess, classes=card.classes, train_counts=[5] * 9)
    run = save_student(tmp_path / "wrong", model, wrong)
    assert "names 10 classes and counts the images of 9" in refusal(run=run)


def test_a_missing_or_damaged_checkpoint(refusal: Refusal, tmp_path: Path) -> None:
    assert "there is no such file" in refusal(run=tmp_path / "nothing", old=False)
    (tmp_path / STUDENT).write_bytes(b"damaged")
    assert "damaged or not written by this program" in refusal(run=tmp_path, old=False)


def test_validation_data_of_other_classes(
    refusal: Refusal, class_tree: Callable[[Path, Mapping[str, int]], Path], tmp_path: Path
) -> None:
    other = class_tree(tmp_path / "other", {"cat": 3, "dog": 3})
    assert "cat" in refusal(data=other)


def test_data_that_is_empty_or_damaged(
    refusal: Refusal, class_tree: Callable[[Path, Mapping[str, int]], Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(data=tmp_path / "empty", old=False)
    data = class_tree(tmp_path / "data", {str(digit): 2 for digit in range(10)})
    (data / "3" / "1.png").write_bytes(b"\x89PNG damaged")
    assert "1.png" in refusal(data=data, old=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--max-images", "0"], "--max-images is 0"),
        (["--max-images", "many"], "--max-images"),
        (["--variants", "int4"], "invalid choice: 'int4'"),
        (["--split", "val"], "has no val images, only"),
        (["--variants", "fp16", "--max-loss", "0"], "above 0 and at most 100"),
        (["--variants", "int8", "--calibration", "nowhere"], "nowhere"),
        (["--variants", "fp16", "--calibration", "nowhere"], "add --variants int8"),
        (["--name", "team/model"], "--name is 'team/model'"),
        (["--attention", "sdpa"], "invalid choice: 'sdpa'"),
        (
            ["--variants", "triton", "--name", "my model"],
            "'my model' is no name for a Triton model",
        ),
    ],
)
def test_wrong_options(refusal: Refusal, options: list[str], text: str) -> None:
    assert text in refusal(*options)


def test_an_output_that_is_taken(
    fitted_run: Path, digits: Path, whole_bundle: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("mine")
    other.mkdir()
    (other / "notes").write_text("mine")
    bundle = shutil.copytree(whole_bundle, tmp_path / "bundle")
    for output, text, option in (
        (file, "is a file", "--overwrite"),
        (other, "holds other files", "--overwrite"),
        (bundle, "holds a bundle already; pass --overwrite", "--name=x"),
    ):
        before = content(tmp_path)
        assert export(fitted_run, output, digits, option) == 2
        assert text in capsys.readouterr().err
        assert content(tmp_path) == before


def test_a_parent_folder_that_cannot_be_made(
    fitted_run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert export(fitted_run, tmp_path / "file" / "bundle", digits) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz"])
def test_a_full_disk(
    whole_bundle: Path, fitted_run: Path, digits: Path, tmp_path: Path, file: str
) -> None:
    """The limit stops this file when it is nearly whole."""
    limit = open_bundle(whole_bundle).manifest["files"][file]["bytes"] - 200
    output = tmp_path / "out" / "bundle"
    shutil.copytree(whole_bundle, output)
    before = content(output.parent)
    command = [sys.executable, "-c", LIMITED, str(limit), str(fitted_run), "--output", str(output)]
    result = subprocess.run(
        [*command, "--data", str(digits), "--overwrite"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("export: ")
    assert "File too large" in line
    assert content(output.parent) == before
