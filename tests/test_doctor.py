"""The doctor: every planted fault is found and named in one line, and a clean set passes."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deitlt.run_splits import load_splits
from training import doctor
from training.config import Recipe
from training.doctor import main

Draw = Callable[..., Path]


@pytest.fixture
def draw() -> Draw:
    """Writes a picture of its own at a path: `draw(path, size=(9, 7), mode="RGB")`."""
    seeds = count()

    def make(path: Path, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(next(seeds)).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return make


@pytest.fixture
def tree(tmp_path: Path, draw: Draw) -> Path:
    """A clean tree: classes a, b and c with 20, 10 and 5 training and 5 test images each."""
    for name, number in (("a", 20), ("b", 10), ("c", 5)):
        for split, images in (("train", number), ("test", 5)):
            for i in range(images):
                draw(tmp_path / "data" / split / name / f"{i:02d}.png")
    return tmp_path / "data"


def examine(data: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON report; every finding must be one line."""
    file = data.parent / "report.json"
    status = main(["--data", str(data), "--json", str(file), *options])
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for finding in (*report["errors"], *report["warnings"]):
        assert finding["text"]
        assert "\n" not in finding["text"]
    return status, report


def kinds(findings: list[dict[str, str]]) -> list[str]:
    return [finding["kind"] for finding in findings]


def test_a_clean_set_passes(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = examine(tree)
    assert status == 0
    assert report["errors"] == report["warnings"] == []
    assert report["layout"] == "class folders"
    assert report["classes"] == ["a", "b", "c"]
    assert report["found"]["train"]["counts"] == [20, 10, 5]
    assert report["found"]["train"]["imbalance_factor"] == 4
    # A tenth of each class but at least one image is held out: 2, 1 and 1.
    assert report["run"]["train"]["counts"] == [18, 9, 4]
    assert report["run"]["val"]["counts"] == [2, 1, 1]
    assert report["run"]["test"]["counts"] == [5, 5, 5]
    assert report["groups"] == {"head": 1, "mid": 1, "tail": 1, "many": 0, "medium": 0, "few": 3}
    assert report["run"]["train"]["groups"]["head"] == 18
    assert report["run"]["test"]["groups"]["few"] == 15
    assert report["images"]["width"] == {"min": 9, "median": 9, "max": 9}
    assert report["images"]["modes"] == {"RGB": 50}
    assert capsys.readouterr().out.endswith("0 errors, 0 warnings\n")


def test_it_splits_as_training_will(tree: Path) -> None:
    fields = {"img_size": 8, "epochs": 1, "batch_size": 2, "lr": 1, "weight_decay": 0}
    recipe = Recipe(name="", drw_epoch=1, val_fraction=0.3, **fields)  # type: ignore[arg-type]
    splits = load_splits(tree, vars(recipe))
    assert splits.val is not None
    _, report = examine(tree, "--val-fraction", "0.3")
    assert report["run"]["train"]["counts"] == splits.train.counts().tolist()
    assert report["run"]["val"]["counts"] == splits.val.counts().tolist()


@pytest.mark.parametrize("share", ["-1", "nan", "0.9"])
def test_a_share_that_training_refuses_is_an_error(share: str, tree: Path) -> None:
    status, report = examine(tree, "--val-fraction", share)
    assert status == 3
    assert "outside 0 to 0.5" in report["errors"][0]["text"]


def test_the_long_tailed_subset_is_shown_or_its_refusal(tree: Path) -> None:
    status, report = examine(tree, "--imbalance-factor", "2")
    assert status == 3
    (error,) = report["errors"]
    assert "needs a balanced set" in error["text"]
    for split, number in (("train", 5), ("test", 5)):
        for folder in (tree / split).iterdir():
            for file in sorted(folder.iterdir())[number:]:
                file.unlink()
    status, report = examine(tree, "--imbalance-factor", "5", "--val-fraction", "0")
    assert status == 0
    assert report["run"]["train"]["counts"] == [5, 2, 1]
    assert "val" not in report["run"]


def plant_truncated(tree: Path, draw: Draw) -> None:
    file = draw(tree / "train" / "a" / "zz.png", (64, 64))
    file.write_bytes(file.read_bytes()[:900])


def plant_text_as_image(tree: Path, draw: Draw) -> None:
    (tree / "train" / "a" / "zz.jpg").write_text("<html>not found</html>")


def plant_empty_file(tree: Path, draw: Draw) -> None:
    (tree / "test" / "b" / "zz.png").touch()


def plant_leak(tree: Path, draw: Draw) -> None:
    # The same pixels in another format and at another place.
    Image.open(tree / "train" / "a" / "03.png").save(tree / "test" / "a" / "zz.bmp")


def plant_empty_class(tree: Path, draw: Draw) -> None:
    (tree / "train" / "d").mkdir()


def plant_unknown_class(tree: Path, draw: Draw) -> None:
    for i in range(5):
        draw(tree / "test" / "wasp" / f"{i}.png")


def plant_similar_names(tree: Path, draw: Draw) -> None:
    for split in ("train", "test"):
        for i in range(6):
            draw(tree / split / "A " / f"{i}.png")


@pytest.mark.parametrize(
    ("plant", "kind", "fragment"),
    [
        (plant_truncated, "decode_failed", "train/a/zz.png"),
        (plant_text_as_image, "unsupported_image", "train/a/zz.jpg"),
        (plant_empty_file, "decode_failed", "test/b/zz.png"),
        (plant_leak, "picture_in_two_splits", "train/a/03.png of train and"),
        (plant_empty_class, "empty_class_folder", "train/d: no images"),
        (plant_unknown_class, "unknown_class", "class 'wasp' of test"),
        (plant_similar_names, "similar_names", "'A ' and 'a' differ only by case or spaces"),
    ],
)
def test_a_planted_error_is_found(
    plant: Callable[[Path, Draw], None],
    kind: str,
    fragment: str,
    tree: Path,
    draw: Draw,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(tree, draw)
    status, report = examine(tree)
    assert status == 3
    (error,) = report["errors"]
    assert error["kind"] == kind
    assert fragment in error["text"]
    assert f"error: {error['text']}\n" in capsys.readouterr().out


def test_all_planted_errors_are_found_at_once(tree: Path, draw: Draw) -> None:
    plants = (
        plant_truncated,
        plant_text_as_image,
        plant_empty_file,
        plant_leak,
        plant_empty_class,
        plant_unknown_class,
        plant_similar_names,
    )
    for plant in plants:
        file = tree / "train" / "a" / "zz.png"
        plant(tree, draw)
        if file.exists():
            file.rename(file.with_name("truncated.png"))
    status, report = examine(tree)
    assert status == 3
    assert len(report["errors"]) == len(plants)


def one_label_too_many(tree: Path, draw: Draw) -> None:
    Image.open(tree / "train" / "a" / "00.png").save(tree / "train" / "b" / "zz.png")


def one_copy(tree: Path, draw: Draw) -> None:
    Image.open(tree / "test" / "a" / "00.png").save(tree / "test" / "a" / "zz.png")


def nothing_to_judge(tree: Path, draw: Draw) -> None:
    for file in (tree / "test" / "b").iterdir():
        file.unlink()
    (tree / "test" / "b").rmdir()


def little_to_judge(tree: Path, draw: Draw) -> None:
    (tree / "test" / "b" / "00.png").unlink()


def a_class_of_one(tree: Path, draw: Draw) -> None:
    draw(tree / "train" / "d" / "0.png")
    for i in range(5):
        draw(tree / "test" / "d" / f"{i}.png")


def no_test(tree: Path, draw: Draw) -> None:
    (tree / "test").rename(tree / "val")


def foreign_files(tree: Path, draw: Draw) -> None:
    (tree / "train" / "a" / "1.heic").touch()
    (tree / "train" / "a" / ".hidden").touch()


@pytest.mark.parametrize(
    ("plant", "kind", "fragment"),
    [
        (one_label_too_many, "picture_under_two_labels", "a/00.png is 'a', and the same picture"),
        (one_copy, "repeated_picture", "1 image ("),
        (nothing_to_judge, "class_missing_from_split", "1 class ('b') without images in test"),
        (little_to_judge, "too_few_to_claim", "1 class ('b') with fewer than 5 test images"),
        (a_class_of_one, "nothing_to_hold_out", "1 class ('d') without held-out images"),
        (no_test, "no_test_split", "there is no test split"),
        (foreign_files, "files_left_out", "1 x .heic"),
    ],
)
def test_a_planted_weakness_is_a_warning(
    plant: Callable[[Path, Draw], None], kind: str, fragment: str, tree: Path, draw: Draw
) -> None:
    plant(tree, draw)
    status, report = examine(tree)
    assert status == 0
    assert kinds(report["warnings"]) == [kind]
    assert fragment in report["warnings"][0]["text"]


def test_copies_that_the_held_out_share_gets_are_counted(tree: Path) -> None:
    for file in sorted((tree / "train" / "a").iterdir()):
        Image.open(file).save(file.with_name(f"copy {file.name}"))
    status, report = examine(tree, "--val-fraction", "0.5")
    assert status == 0
    assert kinds(report["warnings"]) == ["repeated_picture", "held_out_picture_trained_on"]
    repeated, held_out = report["warnings"]
    assert repeated["text"].startswith("20 images (")
    assert "held-out images (" in held_out["text"]


def test_faults_of_a_csv(tree: Path) -> None:
    lines = ["image_path,label,split,group"]
    for split in ("train", "test"):
        for name in "abc":
            lines += [f"{split}/{name}/{i:02d}.png,{name},{split},{name}{i % 3}" for i in range(5)]
    file = tree / "labels.csv"
    file.write_text("\n".join(lines))
    status, report = examine(file)
    assert status == 3
    assert report["layout"] == "csv"
    assert set(kinds(report["errors"])) == {"group_in_two_splits"}
    assert len(report["errors"]) == 9
    text = "\n".join(lines).replace("test,", "test,t").replace("train/a/04", "train/a/99")
    file.write_text(text)
    status, report = examine(file)
    assert kinds(report["errors"]) == ["missing_file"]
    assert "line 6" in report["errors"][0]["text"]
    # Each class has three groups of two, two and one images; a tenth of four or five is one.
    assert report["run"]["val"]["images"] == 3


def test_lists_and_what_becomes_of_a_val_list(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, name in (("train", "iNat_train.txt"), ("test", "iNat_val.txt")):
        rows = [
            f"{path.relative_to(tree)} {'abc'.index(path.parent.name)}"
            for path in sorted((tree / split).rglob("*.png"))
        ]
        (tree / name).write_text("\n".join([*rows, f"{split}/a/gone.png 0"]))
    status, report = examine(tree)
    assert status == 3
    assert report["layout"] == "lists"
    assert kinds(report["errors"]) == ["missing_file", "missing_file"]
    assert list(report["found"]) == ["train", "test"]
    assert "iNat_val.txt is read as test" in capsys.readouterr().out


def test_sizes_and_modes(tmp_path: Path, draw: Draw) -> None:
    for i, (size, mode) in enumerate([((10, 4), "L"), ((20, 6), "RGB"), ((60, 5), "RGB")]):
        draw(tmp_path / "data" / "a" / f"{i}.png", size, mode)
        draw(tmp_path / "data" / "b" / f"{i}.png", size, mode)
    _, report = examine(tmp_path / "data")
    assert report["images"] == {
        "width": {"min": 10, "median": 20, "max": 60},
        "height": {"min": 4, "median": 5, "max": 6},
        "modes": {"RGB": 4, "L": 2},
    }


def test_many_findings_are_cut_in_print_and_whole_in_json(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(doctor.PRINTED + 3):
        (tree / "train" / "a" / f"bad{i}.png").touch()
    _, report = examine(tree)
    assert len(report["errors"]) == doctor.PRINTED + 3
    out = capsys.readouterr().out
    assert out.count("error: ") == doctor.PRINTED
    assert "and 3 more decode_failed; --json FILE lists all" in out


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert main(["--dta", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_ctrl_c_is_one_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(command: doctor.DoctorCommand) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert main(["--data", str(tree)]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
