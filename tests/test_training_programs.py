"""The training programs as their users run them: results on disk, and one line for a mistake."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from deitlt.classifier import load
from deitlt.weights import load_tensors, load_weights, save_tensors
from export import to_bundle
from training import evaluate, train_student, train_teacher
from training.scoring import fit_blend

COUNTS = {"a": 12, "b": 8, "c": 6}
QUICK = ["--epochs", "2", "--drw-epoch", "1", "--batch-size", "8", "--workers", "0"]
QUICK += ["--imbalance-factor", "None", "--val-fraction", "0.2"]
STUDENT = ["digits", *QUICK, "--allow-weak-teacher"]  # two epochs teach a teacher nothing

Tree = Callable[[Path, Mapping[str, int]], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, class_tree: Tree) -> Path:
    root = tmp_path_factory.mktemp("programs") / "data"
    class_tree(root / "train", COUNTS)
    class_tree(root / "test", dict.fromkeys(COUNTS, 4))
    return root


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    run = data.parent / "teacher"
    assert train_teacher.main(["digits", *QUICK, "--data", str(data), "--output", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def student(data: Path, teacher: Path) -> Path:
    run = data.parent / "student"
    where = ["--data", str(data), "--teacher", str(teacher), "--output", str(run)]
    assert train_student.main([*STUDENT, *where]) == 0
    return run


def complaint(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The single line of a program that ended with status 2."""
    captured = capsys.readouterr()
    assert code == 2
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_a_student_goes_all_the_way_to_predictions(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(student), "--data", str(data)]) == 0
    metrics = json.loads((student / "metrics-test.json").read_text())
    assert metrics["num_images"] == 12
    assert list(metrics["heads"]) == ["average", "cls", "dist"]
    table = capsys.readouterr().out
    assert all(head in table for head in ("average", "cls", "dist", "tail", "few"))

    bundle = tmp_path / "bundle"
    assert to_bundle.main([str(student), "--output", str(bundle), "--data", str(data)]) == 0
    exported = json.loads((bundle / "metrics.json").read_text())
    # Torch on training's tensors and ONNX on the deployed preprocessing give the same figures.
    for head, figures in exported["heads"].items():
        assert figures["overall"] == metrics["heads"][head]["overall"]
    images = sorted((data / "test").rglob("*.png"))
    predictions = load(bundle).predict([str(image) for image in images], experts=True)
    right = [p.label == image.parent.name for p, image in zip(predictions, images, strict=True)]
    assert np.mean(right) == pytest.approx(metrics["heads"]["average"]["overall"]["value"])


def test_a_run_keeps_its_resolved_recipe_and_its_card(student: Path, data: Path) -> None:
    recipe = json.loads((student / "recipe.json").read_text())
    assert (recipe["name"], recipe["epochs"], recipe["batch_size"]) == ("digits", 2, 8)
    _, card = load_weights(student, "student")
    assert card.classes == ["a", "b", "c"]
    assert card.train_counts == [10, 6, 5]  # 20 % held out: 2, 2 and 1
    assert card.recipe == recipe
    assert card.validation["average"]["overall"]["num_images"] == 5


def test_a_teacher_can_be_evaluated_too(teacher: Path, data: Path, tmp_path: Path) -> None:
    arguments = [str(teacher), "--data", str(data), "--split", "val", "--output", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    metrics = json.loads((tmp_path / "metrics-val.json").read_text())
    assert list(metrics["heads"]) == ["teacher"]
    assert metrics["num_images"] == 5


def test_a_teacher_with_another_class_order_is_refused(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = shutil.copytree(data, tmp_path / "data")
    for split in ("train", "test"):
        (renamed / split / "a").rename(renamed / split / "x")
    capsys.readouterr()
    where = ["--data", str(renamed), "--teacher", str(teacher), "--output", str(tmp_path / "run")]
    line = complaint(train_student.main([*STUDENT, *where]), capsys)
    assert "not the same ones" in line
    assert not (tmp_path / "run").exists()


def test_the_same_classes_in_another_order_are_refused(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, card = load_weights(teacher, "teacher")
    fields = {**asdict(card), "preprocess": card.preprocess.to_dict(), "classes": ["b", "a", "c"]}
    save_tensors(tmp_path / "teacher.safetensors", tensors, fields)
    where = ["--data", str(data), "--teacher", str(tmp_path), "--output", str(tmp_path / "run")]
    line = complaint(train_student.main([*STUDENT, *where]), capsys)
    assert "another order" in line
    assert "'b'" in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_images_is_warned_of(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data), "--teacher", str(teacher), "--output", str(tmp_path / "run")]
    arguments = [*STUDENT, *where, "--split-seed", "1", "--epochs", "1"]
    capsys.readouterr()
    assert train_student.main(arguments) == 0
    assert "trained on other images" in capsys.readouterr().err


def test_bad_data_costs_one_line_and_leaves_no_run(
    data: Path, tmp_path: Path, class_tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(name: str) -> str:
        where = ["--data", str(tmp_path / name), "--output", str(tmp_path / "run")]
        line = complaint(train_teacher.main(["digits", *QUICK, *where]), capsys)
        assert not (tmp_path / "run").exists()
        return line

    assert "no such folder" in refusal("missing")
    broken = class_tree(tmp_path / "broken", COUNTS)
    (broken / "b" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    assert "b/3.png" in refusal("broken")
    empty = class_tree(tmp_path / "empty", COUNTS)
    (empty / "d").mkdir()
    assert "no images in this class folder" in refusal("empty")
    class_tree(tmp_path / "extra" / "train", COUNTS)
    class_tree(tmp_path / "extra" / "val", {"a": 1, "z": 1})
    assert "'z'" in refusal("extra")
    (tmp_path / "columns.csv").write_text("image_path,class\nx.png,a\n")
    assert "'label'" in refusal("columns.csv")
    (tmp_path / "file.csv").write_text("image_path,label\nx.png,a\n")
    assert "x.png" in refusal("file.csv")


def test_a_taken_run_folder_is_never_clobbered(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (teacher / "teacher.safetensors").read_bytes()
    where = ["--data", str(data), "--output", str(teacher)]
    capsys.readouterr()
    assert "--resume" in complaint(train_teacher.main(["digits", *QUICK, *where]), capsys)
    other = ["digits", *QUICK, *where, "--resume", "--lr", "0.5"]
    line = complaint(train_teacher.main(other), capsys)
    assert "was started with --lr 0.1, not 0.5" in line
    assert (teacher / "teacher.safetensors").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    where = ["--data", str(data), "--output", str(tmp_path)]
    line = complaint(train_teacher.main(["digits", *QUICK, *where, "--overwrite"]), capsys)
    assert "holds other files" in line
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_student_never_takes_the_folder_it_starts_from(
    data: Path, teacher: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data), "--teacher", str(teacher), "--overwrite", "--output"]
    init = ["--init", str(student / "student.safetensors")]
    for folder, more in ((teacher, []), (student, init)):
        before = {file.name: file.stat().st_size for file in folder.iterdir()}
        line = complaint(train_student.main(["digits", *QUICK, *where, str(folder), *more]), capsys)
        assert "name another one" in line
        assert {file.name: file.stat().st_size for file in folder.iterdir()} == before


def test_a_diverging_run_stops_with_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data), "--output", str(tmp_path / "run")]
    arguments = ["digits", *QUICK, *where, "--lr", "1e30", "--warmup-epochs", "0"]
    assert "training diverged" in complaint(train_teacher.main(arguments), capsys)


def test_a_model_that_answers_with_no_numbers_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the only step, whose loss was one."""
    run = tmp_path / "run"
    where = ["--data", str(data), "--output", str(run)]
    options = ["--lr", "1e30", "--warmup-epochs", "0", "--epochs", "1", "--batch-size", "20"]
    arguments = ["digits", *QUICK, *options, *where]
    line = complaint(train_teacher.main(arguments), capsys)
    assert "training diverged: answers after epoch 1 are NaN or infinite; lower --lr" in line
    assert train_teacher.main([*arguments, "--val-fraction", "0", "--overwrite"]) == 0
    capsys.readouterr()
    assert "answers with NaN" in complaint(evaluate.main([str(run), "--data", str(data)]), capsys)
    where = ["--data", str(data), "--output", str(tmp_path / "student"), "--teacher", str(run)]
    code = train_student.main([*STUDENT, *where, "--val-fraction", "0"])
    assert "answers with NaN" in complaint(code, capsys)


def test_a_full_disk_is_one_line_and_others_may_read_what_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["digits", *QUICK, "--data", str(data), "--output", str(run)]
    assert train_teacher.main(arguments) == 0
    modes = {file.name: file.stat().st_mode for file in run.iterdir() if file.is_file()}
    assert set(modes.values()) == {modes["recipe.json"]}
    before = (run / "resume.safetensors").read_bytes()

    def full(*arguments: Any) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("deitlt.weights.save_file", full)
    (run / "teacher.safetensors").unlink()  # so that the finished run has something to write
    capsys.readouterr()
    code = train_teacher.main([*arguments, "--resume"])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert lines[-1].endswith("No space left on device (os error 28))")
    assert (run / "resume.safetensors").read_bytes() == before


def test_without_held_out_images_the_last_epoch_is_kept(
    data: Path, tmp_path: Path, class_tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data), "--output", str(tmp_path / "run"), "--paco-alpha", "0.1"]
    assert train_teacher.main(["digits", *QUICK, *where, "--val-fraction", "0"]) == 0
    assert "note: --paco-alpha changes nothing with --method ldam\n" in capsys.readouterr().out
    _, card = load_weights(tmp_path / "run", "teacher")
    assert (card.epoch, card.validation) == (2, {})
    assert card.train_counts == [12, 8, 6]
    for split in ("train", "val"):
        class_tree(tmp_path / "data" / split, COUNTS)
    where = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "other")]
    assert train_teacher.main(["digits", *QUICK, *where, "--val-fraction", "0"]) == 0
    assert "selected all the same: the data has a val split" in capsys.readouterr().out


def test_evaluate_says_what_is_missing(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    missing = ["nowhere", "--data", str(data)]
    assert "no such run folder" in complaint(evaluate.main(missing), capsys)
    split = [str(student), "--data", str(data), "--split", "all"]
    assert "has no all images" in complaint(evaluate.main(split), capsys)


def test_evaluate_takes_other_data_as_it_is(
    student: Path, class_tree: Tree, tmp_path: Path
) -> None:
    class_tree(tmp_path / "other" / "test", {"a": 2, "c": 1})
    class_tree(tmp_path / "tree", {"b": 3, "c": 2})
    for name, split, num_images in (("other", "test", 3), ("tree", "all", 5)):
        where = ["--data", str(tmp_path / name), "--output", str(tmp_path)]
        assert evaluate.main([str(student), *where]) == 0
        metrics = json.loads((tmp_path / f"metrics-{split}.json").read_text())
        assert metrics["num_images"] == num_images


def test_evaluate_finds_the_runs_own_images(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, card = load_weights(student, "student")
    for split, warning in (("val", ""), ("train", "trained on 21 of these 21 images")):
        where = ["--data", str(data), "--split", split, "--output", str(tmp_path)]
        capsys.readouterr()
        assert evaluate.main([str(student), *where]) == 0
        said = capsys.readouterr().err
        assert warning in said
        assert said.count("\n") == bool(warning)
    held_out = json.loads((tmp_path / "metrics-val.json").read_text())
    # The very figures by which the epoch was selected.
    assert held_out["heads"] == json.loads(json.dumps(card.validation))
    trained_on = json.loads((tmp_path / "metrics-train.json").read_text())
    assert trained_on["num_images"] == sum(card.train_counts)


def test_evaluate_says_that_a_run_knows_its_images_by_name_alone(
    student: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, fields = load_tensors(student / "student.safetensors")
    fields["train_files_sha256"] = 64 * "0"
    save_tensors(tmp_path / "student.safetensors", tensors, fields)
    capsys.readouterr()
    assert evaluate.main([str(tmp_path), "--data", str(data)]) == 0
    assert "trained on cannot be told; it is of an earlier version" in capsys.readouterr().err


def test_evaluate_leaves_a_bundle_as_it_was(student: Path, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(student / "student.safetensors", bundle)
    (bundle / "bundle.json").touch()
    for run in (bundle, bundle / "student.safetensors"):
        assert evaluate.main([str(run), "--data", str(data)]) == 0
        assert len(list(bundle.iterdir())) == 2
        names = [file.name for file in (tmp_path / "bundle-evaluation").iterdir()]
        assert sorted(names) == ["metrics-test.json", "per_class-test.csv"]
        shutil.rmtree(tmp_path / "bundle-evaluation")


def test_a_blend_is_fitted_on_held_out_images(
    student: Path, teacher: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(data), "--fit-blend", "--output", str(tmp_path)]
    assert evaluate.main([str(student), *where]) == 0
    metrics = json.loads((tmp_path / "metrics-test.json").read_text())
    assert list(metrics["heads"]) == ["average", "cls", "dist", "blend"]
    assert f"blend: {metrics['blend']:.2f} of CLS" in capsys.readouterr().out
    assert "needs two experts" in complaint(evaluate.main([str(teacher), *where]), capsys)


def test_the_best_blend_is_found() -> None:
    labels = np.array([0, 0, 1, 1])
    right = np.eye(2, dtype=np.float32)[labels]
    wrong = 1 - right
    assert fit_blend({"cls": right, "dist": wrong}, labels, 2) == 0.55
    assert fit_blend({"cls": wrong, "dist": 3 * right}, labels, 2) == 0.5
    assert fit_blend({"cls": wrong, "dist": right}, labels, 2) == 0.45
    assert fit_blend({"cls": right, "dist": right}, labels, 2) == 0.5
