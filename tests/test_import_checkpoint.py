"""Importing published checkpoints: what comes in whole, and what is refused in one line."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath

from deitlt import load
from deitlt.bundle import MANIFEST
from deitlt.preprocess import PreprocessSpec, load_pixels, normalise
from deitlt.student import StudentConfig, average_logits, load_student
from deitlt.weights import load_weights
from export import to_bundle
from export.import_checkpoint import main
from tests.official_support import student_file, student_tensors, tensors
from training import evaluate

ClassTree = Callable[[Path, Mapping[str, int]], Path]
Fails = Callable[..., str]

NUM_CLASSES = 4


def weights_of(num_classes: int = NUM_CLASSES) -> dict[str, torch.Tensor]:
    config = StudentConfig(size="tiny", img_size=32, patch_size=16, num_classes=num_classes)
    return student_tensors(config)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A made-up tiny student of four classes and 32 px."""
    return weights_of()


@pytest.fixture
def data(class_tree: ClassTree, tmp_path: Path) -> Path:
    return class_tree(tmp_path / "data", {"ant": 2, "bee": 5, "cat": 1, "dog": 3})


@pytest.fixture
def fails(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the import of a file, which must end with one line, that it returns, and no output."""

    def run(file: Path, *options: str) -> str:
        assert (
            main([str(file), "--output", str(tmp_path / "run"), "--data", str(data), *options]) == 2
        )
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("import: ")
        assert not (tmp_path / "run").exists()
        return err

    return run


def run_import(file: Path, data: Path, *options: str) -> Path:
    output = file.parent / "run"
    assert main([str(file), "--output", str(output), "--data", str(data), *options]) == 0
    return output


def test_a_student_comes_in_with_all_it_says(
    weights: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    run = run_import(student_file(tmp_path / "best.pth", weights), data)
    model, card = load_student(run)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert card.classes == ["ant", "bee", "cat", "dog"]
    assert card.train_counts == [200, 150, 100, 50]  # its own counts, not those of the data
    assert card.preprocess == PreprocessSpec(32, 0.875)
    assert (card.epoch, card.train_files_sha256, card.validation) == (1200, "", {})
    recipe = card.recipe
    assert (recipe["name"], recipe["source"], recipe["weights"]) == (
        "imported",
        "best.pth",
        "model",
    )
    assert len(recipe["source_sha256"]) == 64
    assert [file.name for file in run.iterdir()] == ["student.safetensors"]


def test_ema_weights_are_taken_on_request(
    weights: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    run = run_import(student_file(tmp_path / "best.pth", weights), data, "--ema")
    model, card = load_student(run)
    assert card.recipe["weights"] == "model_ema"
    torch.testing.assert_close(model.head.bias[0], weights["head.bias"][0] + 1)


def test_preprocessing_can_be_set(
    weights: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    options = ["--crop-pct", "1", "--mean", ".1", ".2", ".3", "--std", "1", "1", "1"]
    run = run_import(student_file(tmp_path / "best.pth", weights), data, *options)
    assert load_student(run)[1].preprocess == PreprocessSpec(32, 1, (0.1, 0.2, 0.3), (1, 1, 1))


def test_weights_of_a_run_are_not_imported_again(
    weights: dict[str, torch.Tensor],
    data: Path,
    tmp_path: Path,
    fails: Fails,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their preprocessing and counts would be lost without a word."""
    (tmp_path / "first").mkdir()
    run = run_import(student_file(tmp_path / "first" / "best.pth", weights), data)
    capsys.readouterr()
    assert "whose card an import would lose; use it as it is" in fails(run / "student.safetensors")


@torch.no_grad()
def test_timms_distilled_weights_answer_as_timm_does(data: Path, tmp_path: Path) -> None:
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=NUM_CLASSES).eval()
    theirs.load_state_dict(tensors({n: list(w.shape) for n, w in theirs.state_dict().items()}))
    torch.save({"model": theirs.state_dict()}, tmp_path / "model.pth")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model, card = load_student(run_import(tmp_path / "model.safetensors", data))
    same, _ = load_weights(run_import(tmp_path / "model.pth", data, "--overwrite"), "student")
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    cls, dist = model(images)
    torch.testing.assert_close(average_logits(cls, dist), theirs(images))
    theirs.set_distilled_training(True)
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    for expected, actual in zip(theirs(images), (cls, dist), strict=True):
        torch.testing.assert_close(actual, expected)
    assert card.architecture["size"] == "tiny"
    assert card.train_counts == [2, 5, 1, 3]
    assert card.epoch == 0


def test_timms_weights_come_by_name_and_export(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, pretrained: bool) -> Any:
        assert pretrained
        return untrained(name, num_classes=NUM_CLASSES)

    untrained = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    arguments = ["--output", str(tmp_path / "run"), "--data", str(data)]
    assert main(["--timm", "deit_tiny_distilled_patch16_224", *arguments]) == 0
    model, card = load_student(tmp_path / "run")
    assert card.preprocess == PreprocessSpec(224, 0.9)
    assert card.recipe["source"] == f"timm {timm.__version__}: deit_tiny_distilled_patch16_224"
    run, bundle, image = tmp_path / "run", tmp_path / "bundle", data / "ant" / "0.png"
    assert to_bundle.main([str(run), "--output", str(bundle), "--data", str(data)]) == 0
    [prediction] = load(bundle, device="cpu", num_threads=1).predict([image], top_k=4)
    pixels = normalise(load_pixels(image, card.preprocess)[None], card.preprocess)
    with torch.no_grad():
        expected = average_logits(*model(torch.from_numpy(pixels))).softmax(dim=1)[0]
    for score in prediction.top_k:
        assert score.probability == pytest.approx(float(expected[score.index]), abs=1e-5)


def test_a_download_that_fails_is_one_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def create(name: str, pretrained: bool) -> Any:
        raise ConnectionError("line 1\nline 2")

    monkeypatch.setattr(timm, "create_model", create)
    arguments = ["--output", str(tmp_path / "run"), "--data", str(data)]
    assert main(["--timm", "deit_tiny_distilled_patch16_224", *arguments]) == 2
    assert capsys.readouterr().err == (
        "import: deit_tiny_distilled_patch16_224: timm could not download it (ConnectionError); "
        "pass a file that you have downloaded instead\n"
    )
    assert main(["--timm", "resnet50", *arguments]) == 2
    assert "--timm resnet50: is none of deit_" in capsys.readouterr().err


def test_from_an_official_file_to_figures_and_a_prediction(
    weights: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    """An imported student goes through evaluation, export and `deitlt.load`."""
    run = run_import(student_file(tmp_path / "best.pth", weights), data)
    assert evaluate.main([str(run), "--data", str(data), "--device", "cpu"]) == 0
    assert (run / "metrics-all.json").is_file()
    bundle = tmp_path / "bundle"
    assert to_bundle.main([str(run), "--output", str(bundle), "--data", str(data)]) == 0
    classifier = load(bundle, device="cpu", num_threads=1)
    [prediction] = classifier.predict([data / "ant" / "0.png"])
    assert prediction.label in ("ant", "bee", "cat", "dog")
    assert classifier.bundle.manifest["recipe"]["name"] == "imported"


def test_a_wrong_number_of_classes_is_refused(data: Path, tmp_path: Path, fails: Fails) -> None:
    line = fails(student_file(tmp_path / "best.pth", weights_of(7)))
    assert f"best.pth: answers 7 classes, but {data} has 4; give the data" in line


def drop_dist(weights: dict[str, torch.Tensor]) -> None:
    del weights["head_dist.weight"], weights["head_dist.bias"]


def drop_norms(weights: dict[str, torch.Tensor]) -> None:
    for number in range(5):
        del weights[f"blocks.{number}.norm1.weight"]


def drop_block(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if name.startswith("blocks.11.")]:
        del weights[name]


def add_early_stopping(weights: dict[str, torch.Tensor]) -> None:
    weights["blocks.0.attn.qkv_dist.bias"] = torch.zeros(576)


def transpose(weights: dict[str, torch.Tensor]) -> None:
    weights["head.weight"] = weights["head.weight"].T[:NUM_CLASSES, :NUM_CLASSES]


def keep_two(weights: dict[str, torch.Tensor]) -> None:
    for name in list(weights)[3:]:
        del weights[name]


def make_complex(weights: dict[str, torch.Tensor]) -> None:
    weights["norm.bias"] = weights["norm.bias"].to(torch.complex64)


def break_one(weights: dict[str, torch.Tensor]) -> None:
    weights["norm.bias"] = torch.full_like(weights["norm.bias"], torch.nan)


def empty_patches(weights: dict[str, torch.Tensor]) -> None:
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"][..., :0]


WRONG = [
    (drop_dist, "has no head_dist: a transformer without DIST is not a student"),
    (
        drop_norms,
        "missing: blocks.0.norm1.weight, blocks.1.norm1.weight, blocks.2.norm1.weight and 2",
    ),
    (drop_block, "no student size is 192 wide and 11 blocks deep"),
    (add_early_stopping, "unknown: blocks.0.attn.qkv_dist.bias"),
    (transpose, "of another shape: head.weight"),
    (keep_two, "has no head_dist"),
    (make_complex, "there are no weights in it"),
    (break_one, "NaN or infinite numbers in norm.bias"),
    (empty_patches, "takes images of 2 patches of 0 px a side"),
]


@pytest.mark.parametrize(("change", "reason"), WRONG)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, torch.Tensor]], None],
    reason: str,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    fails: Fails,
) -> None:
    wrong = dict(weights)
    change(wrong)
    torch.save({"model": wrong}, tmp_path / "wrong.pth")
    assert f"wrong.pth: {reason}" in fails(tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ({"features.0.weight": torch.zeros(1)}, [], "holds features.0.weight: neither a DeiT-LT"),
        ({"epoch": 3, "optimizer": {}}, [], "there are no weights in it"),
        ({"model": {"a": 1}}, [], "there are no weights in it"),
        ({}, [], "there are no weights in it"),
        ({"model": {"a": torch.zeros(1)}}, ["--ema"], "no EMA weights in it; leave out --ema"),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, [], "has no classifier, linear.weight"),
    ],
)
def test_other_files_of_torch_are_refused(
    content: object, options: list[str], reason: str, tmp_path: Path, fails: Fails
) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert reason in fails(tmp_path / "other.pth", *options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--timm", "deit_tiny_distilled_patch16_224"], "give either a FILE or --timm NAME"),
        (["--class-map", "map.txt", "--class-order", "original"], "--class-map does not go with"),
        (["--crop-pct", "1.5"], "--crop-pct must be above 0 and at most 1, not 1.5"),
        (["--std", "0", "1", "1"], "--std must be positive in every channel"),
        (["--std", "1", "nan", "1"], "--std must be positive in every channel"),
        (["--mean", "nan", "0", "0"], "--mean must be a number in every channel"),
        (["--class-map", "/nowhere/map.txt"], "/nowhere/map.txt: No such file or directory"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str],
    reason: str,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    fails: Fails,
) -> None:
    assert reason in fails(student_file(tmp_path / "best.pth", weights), *options)


def test_a_run_is_only_replaced_on_request_and_other_files_never(
    weights: dict[str, torch.Tensor],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = student_file(tmp_path / "best.pth", weights)
    run = run_import(file, data)
    arguments = [str(file), "--data", str(data), "--output"]
    assert main([*arguments, str(run)]) == 2
    assert "holds a run; pass --overwrite" in capsys.readouterr().err
    (run / "results.csv").write_text("of the former run")
    assert main([*arguments, str(run), "--overwrite"]) == 0
    assert [file.name for file in run.iterdir()] == ["student.safetensors"]
    bundle = tmp_path / "bundle"
    shutil.copytree(run, bundle)
    (bundle / MANIFEST).touch()
    assert main([*arguments, str(bundle), "--overwrite"]) == 2
    assert "is a bundle; name a folder for the run" in capsys.readouterr().err
    assert main([*arguments, str(data), "--overwrite"]) == 2
    assert main([*arguments, str(file), "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert "holds other files; name an empty or new folder" in err
    assert "is a file; name a folder" in err
