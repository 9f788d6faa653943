"""The paper's baselines and ablations, through the program, at a size that takes a second."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deitlt.student import CosineHead, DeiTLT, PlainViT, load_transformer
from deitlt.weights import load_weights
from export import to_bundle
from training import evaluate, train_student, train_teacher
from training.recipes import STUDENTS, baselines, cheaper, students

Tree = Callable[[Path, Mapping[str, int]], Path]

# 26 images, 21 of them trained on: 2 steps of 8.
COUNTS = {"a": 12, "b": 8, "c": 6}
TINY = ["--size", "pico", "--img-size", "16", "--patch-size", "4", "--epochs", "1"]
TINY += ["--batch-size", "8", "--micro-batch-size", "4", "--val-fraction", "0.2"]
PLAIN = ["vit", "vit_ldam", "deit3", "imagenet_lt_vit", "imagenet_lt_deit3"]
DISTILLED = ["deit", "cifar_weak_views", "cifar_unmixed", "cifar_no_drw"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, class_tree: Tree) -> Path:
    return class_tree(tmp_path_factory.mktemp("baselines") / "data", COUNTS)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    run = data.parent / "teacher"
    arguments = ["digits", "--epochs", "1", "--batch-size", "8", "--imbalance-factor", "None"]
    assert train_teacher.main([*arguments, "--data", str(data), "--output", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def vit(data: Path) -> Path:
    run = data.parent / "vit"
    assert train(["vit"], data, run) == 0
    return run


def train(recipe: list[str], data: Path, run: Path, *more: object) -> int:
    name, *flags = recipe
    where = ["--data", str(data), "--output", str(run), *map(str, more)]
    return train_student.main([name, *TINY, *flags, *where])


def complaint(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The single line of a program that ended with status 2."""
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def results(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def heads_of(run: Path, data: Path, output: Path) -> dict[str, Any]:
    """What `evaluate` says of each head on the images held out."""
    arguments = [str(run), "--data", str(data), "--split", "val", "--output", str(output)]
    assert evaluate.main(arguments) == 0
    heads: dict[str, Any] = json.loads((output / "metrics-val.json").read_text())["heads"]
    return heads


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_transformer_learns_from_labels_alone(
    name: str, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train([name], data, run) == 0
    (row,) = results(run)
    assert {"loss", "val_cls_balanced"} <= row.keys()
    assert not {"loss_dist", "val_dist_balanced", "val_average_balanced"} & row.keys()
    model, card = load_transformer(run)
    assert isinstance(model, PlainViT)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert list(card.validation) == ["cls"]
    assert list(heads_of(run, data, tmp_path)) == ["cls"]


@pytest.mark.parametrize("name", DISTILLED)
def test_an_ablation_learns_from_its_teacher(
    name: str, data: Path, teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    padding = ["--crop-padding", "2"] if name == "cifar_weak_views" else []
    more = ["--teacher", teacher, "--allow-weak-teacher"]
    assert train([name, *padding], data, run, *more) == 0
    (row,) = results(run)
    assert float(row["loss"]) == pytest.approx(
        (float(row["loss_cls"]) + float(row["loss_dist"])) / 2
    )
    assert isinstance(load_transformer(run)[0], DeiTLT)
    assert list(heads_of(run, data, tmp_path)) == ["average", "cls", "dist"]


def test_the_ldam_baseline_has_a_cosine_head_and_weighs_labels_late(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(["vit_ldam", "--drw-epoch", "0"], data, run) == 0
    model, _ = load_transformer(run)
    assert isinstance(model.head, CosineHead)
    with torch.no_grad():
        (logits,) = model(torch.randn(5, 3, 16, 16))
    assert logits.abs().max() <= 30.001
    # A margin of 0.5 on cosines times 30 makes the first losses large: about 15 above log 3.
    assert float(results(run)[0]["loss"]) > 5


def test_deit3_is_deit3s_recipe(data: Path, tmp_path: Path) -> None:
    recipe = baselines.deit3()
    assert (recipe.optimizer, recipe.cls_loss, recipe.view) == ("lamb", "bce", "three_augment")
    run = tmp_path / "run"
    assert train(["deit3"], data, run) == 0
    model, _ = load_transformer(run)
    scales = [v for k, v in model.state_dict().items() if k.endswith("ls1.gamma")]
    assert len(scales) == 4
    # LAMB resumes: it counts its steps in the group.
    assert train(["deit3"], data, run, "--resume") == 0
    # Three binary problems an image, each at first a coin: log 2 in the mean.
    assert float(results(run)[0]["loss"]) == pytest.approx(0.69, abs=0.1)


def test_crt_trains_new_heads_on_the_features_of_a_run(
    vit: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(["vit_crt"], data, run, "--init", vit) == 0
    before, after = (load_weights(path, "student")[0] for path in (vit, run))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert list(heads_of(run, data, tmp_path)) == ["cls"]


def test_crt_may_put_a_head_of_another_kind_on_the_features(
    vit: Path, data: Path, tmp_path: Path
) -> None:
    cosine = ["vit_crt", "--classifier", "cosine", "--cls-loss", "ldam"]
    assert train(cosine, data, tmp_path / "run", "--init", vit) == 0
    before, after = (load_weights(path, "student")[0] for path in (vit, tmp_path / "run"))
    assert before.keys() - after.keys() == {"head.bias"}
    assert all(torch.equal(before[name], after[name]) for name in after if name != "head.weight")


def test_crt_goes_on_only_from_the_run_it_began_with(
    vit: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    assert train(["vit", "--seed", "1"], data, other) == 0
    assert train(["vit_crt"], data, run, "--init", vit) == 0
    capsys.readouterr()
    line = complaint(train(["vit_crt"], data, run, "--init", other, "--resume"), capsys)
    assert str(run) in line


def test_heads_are_kept_for_their_own_classes_alone(
    vit: Path, data: Path, tmp_path: Path, class_tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = class_tree(tmp_path / "renamed", {"a": 12, "b": 8, "d": 6})
    more = class_tree(tmp_path / "more", {**COUNTS, "d": 6})
    capsys.readouterr()
    for other in (renamed, more):
        line = complaint(train(["vit"], other, tmp_path / "run", "--init", vit), capsys)
        assert "not the same ones, so its heads cannot be kept" in line
        assert not (tmp_path / "run").exists()
    assert train(["vit"], data, tmp_path / "same", "--init", vit) == 0
    # New heads are of any classes.
    assert train(["vit_crt"], more, tmp_path / "crt", "--init", vit) == 0
    assert load_weights(tmp_path / "crt", "student")[1].classes == ["a", "b", "c", "d"]
    where = (more, tmp_path / "new", "--init", vit, "--new-heads", "--lr", "1e-9")
    assert train(["vit"], *where) == 0
    weights, card = load_weights(tmp_path / "new", "student")
    assert card.classes == ["a", "b", "c", "d"]
    begun, _ = load_weights(vit, "student")
    for name, tensor in begun.items():  # features go on from where they were, and are trained
        if not name.startswith("head."):
            torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)
    assert not torch.equal(weights["pos_embed"], begun["pos_embed"])


def test_a_run_that_does_not_fit_is_no_beginning(
    vit: Path, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run = tmp_path / "run"
    for flags, start, words in (
        (["--patch-size", "8"], vit, "its weights do not fit recipe vit_crt"),
        (["--size", "nano"], vit, "its weights do not fit recipe vit_crt"),
        ([], teacher, "student.safetensors"),
        ([], tmp_path / "nowhere", "nowhere"),
    ):
        line = complaint(train(["vit_crt", *flags], data, run, "--init", start), capsys)
        assert words in line
        assert not run.exists()


def test_what_a_baseline_lacks_or_cannot_use_is_said_in_one_line(
    vit: Path, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run = tmp_path / "run"

    def refusal(recipe: list[str], *more: object) -> str:
        line = complaint(train(recipe, data, run, *more), capsys)
        assert not run.exists()
        return line

    assert "takes no --teacher" in refusal(["vit"], "--teacher", teacher)
    assert "--teacher is missing" in refusal(["cifar"])
    assert "--teacher is missing" in refusal(["deit"])
    assert "--init is missing" in refusal(["vit_crt"])
    assert "--new-heads is for --init" in refusal(["vit"], "--new-heads")
    assert "--classifier cosine" in refusal(["vit", "--cls-loss", "ldam"])
    assert "plain transformers" in refusal(["deit", "--classifier", "cosine"])


def test_a_baseline_is_not_deployed(
    vit: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = [str(vit), "--output", str(tmp_path / "bundle"), "--data", str(data)]
    line = complaint(to_bundle.main(arguments), capsys)
    assert "a baseline without a DIST expert" in line
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["cifar_native", "cifar_muon", "cifar_late_balance", "quick"])
def test_a_cheaper_recipe_learns(name: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--teacher", teacher, "--allow-weak-teacher", "--epochs", "2", "--drw-epoch", "1"]
    assert train([name], data, run, *more) == 0
    assert len(results(run)) == 2
    assert all(value.isfinite().all() for value in load_weights(run, "student")[0].values())


def test_baselines_differ_from_the_student_where_the_paper_says() -> None:
    student = students.cifar()
    assert STUDENTS["deit"]().drw_epoch == student.epochs
    assert not baselines.vit().distilled
    assert (baselines.cifar_unmixed().mixup, baselines.cifar_unmixed().cutmix) == (0, 0)
    assert baselines.cifar_weak_views().view == "weak"
    assert cheaper.cifar_short().epochs < student.epochs
