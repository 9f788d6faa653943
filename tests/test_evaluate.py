"""`deitlt evaluate` end to end: figures against scikit-learn, unreadable images, wrong use."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from deitlt.bundle import open_bundle
from deitlt.classifier import Classifier
from deitlt.cli import main
from deitlt.metrics import softmax, wilson_interval
from deitlt.run_splits import DRAWING, load_splits
from tests.bundle_support import DIGITS

GROUPS = {"head": [0, 1, 2], "mid": [3, 4, 5, 6], "tail": [7, 8, 9]}
HEADS = {"average": "logits", "cls": "cls_logits", "dist": "distillation_logits"}
ClassTree = Callable[[Path, Mapping[str, int]], Path]


def run(*arguments: object) -> int:
    """The exit status of the digits' evaluation, returned or argparse's."""
    try:
        return main(["evaluate", str(DIGITS), *map(str, arguments)])
    except SystemExit as exit_status:
        return int(exit_status.code or 0)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return list(csv.DictReader(text))


@pytest.fixture(scope="module")
def data(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test digits: 12 of each, none of 3, two of 8; and two files that are no images."""
    root = tmp_path_factory.mktemp("labelled") / "digits"
    for digit in (0, 1, 2, 4, 5, 6, 7, 8, 9):
        folder = root / "test" / str(digit)
        folder.mkdir(parents=True)
        for file in sorted((digits / "test" / str(digit)).iterdir())[: 2 if digit == 8 else 12]:
            shutil.copy(file, folder)
    (root / "test" / "0" / "0003.png").write_bytes(b"\x89PNG\r\n\x1a\n, damaged")
    (root / "test" / "7" / "a.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def evaluation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `deitlt evaluate` writes for `data`, with everything in it."""
    output = tmp_path_factory.mktemp("evaluated") / "evaluation"
    assert run("--data", data, "--output", output, "--device", "cpu", "--predictions") == 3
    return output


@pytest.fixture(scope="module")
def truth(data: Path, classifier: Classifier) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True classes of the readable images, and logits of each head, one call at a time."""
    files = [f for f in sorted((data / "test").rglob("*.*")) if f.stat().st_size > 40]
    labels = np.array([int(file.parent.name) for file in files])
    outputs = [classifier.runtime.run(classifier.load_pixels(file)[None]) for file in files]
    return labels, {
        head: np.concatenate([getattr(output, name) for output in outputs])
        for head, name in HEADS.items()
    }


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_figures_are_scikit_learns(evaluation: Path, truth: Any) -> None:
    labels, logits = truth
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert (metrics["num_images"], metrics["num_unreadable"]) == (len(labels), 2) == (97, 2)
    assert metrics["unreadable"] == {"decode_failed": 1, "unsupported_image": 1}
    assert metrics["classes_without_images"] == ["3"]
    assert (metrics["split"], metrics["variant"], metrics["bundle"]) == (
        "test",
        "float32",
        "digits",
    )
    for head, figures in metrics["heads"].items():
        said = logits[head].argmax(axis=1)
        present = np.unique(labels)
        recalls = sklearn_metrics.recall_score(labels, said, labels=present, average=None)
        assert figures["overall"]["value"] == pytest.approx((labels == said).mean())
        assert figures["overall"]["interval"] == pytest.approx(
            wilson_interval((labels == said).mean(), 97)
        )
        assert figures["balanced"]["value"] == pytest.approx(
            sklearn_metrics.balanced_accuracy_score(labels, said)
        )
        assert figures["macro_f1"] == pytest.approx(
            sklearn_metrics.f1_score(labels, said, labels=present, average="macro")
        )
        for group, classes in GROUPS.items():
            inside = np.isin(present, classes)
            assert figures["groups"][group]["value"] == pytest.approx(recalls[inside].mean())
        bins = np.minimum((softmax(logits[head]).max(axis=1) * 15).astype(int), 14)
        gaps = softmax(logits[head]).max(axis=1) - (said == labels)
        ece = sum(abs(gaps[bins == b].sum()) for b in range(15)) / 97
        assert figures["ece"] == pytest.approx(ece, abs=1e-6)
        signed = softmax(logits[head]) - np.eye(10)[labels]
        cells = np.minimum((softmax(logits[head]) * 15).astype(int), 14)
        sums = [abs(signed[:, c][cells[:, c] == b].sum()) for c in range(10) for b in range(15)]
        assert figures["classwise_ece"] == pytest.approx(sum(sums) / 97 / 10, abs=1e-6)
    cls, dist = (logits[head].argmax(axis=1) for head in ("cls", "dist"))
    assert metrics["agreement"]["all"]["share"]["value"] == pytest.approx((cls == dist).mean())
    assert set(metrics["heads"]) == set(HEADS)


def test_classes_have_their_row(evaluation: Path, truth: Any) -> None:
    labels, logits = truth
    table = rows(evaluation / "per_class.csv")
    assert [row["label"] for row in table] == [*"0123456789"]
    assert [row["train_images"] for row in table][:2] == ["117", "84"]
    assert [row["group"] for row in table] == ["head"] * 3 + ["mid"] * 4 + ["tail"] * 3
    assert [row["count_group"] for row in table] == ["many"] + ["medium"] * 5 + ["few"] * 4
    images = [11, 12, 12, 0, 12, 12, 12, 12, 2, 12]
    assert [int(row["images"]) for row in table] == images
    assert [row["claimable"] for row in table] == ["yes" if n >= 5 else "no" for n in images]
    said = logits["average"].argmax(axis=1)
    oracle = sklearn_metrics.precision_recall_fscore_support(
        labels, said, labels=range(10), zero_division=0
    )
    for row, precision, recall, f1 in zip(table, *oracle[:3], strict=True):
        if row["label"] == "3":
            assert (row["average"], row["cls_low"], row["f1"]) == ("", "", "")
            continue
        assert float(row["precision"] or 0) == pytest.approx(precision, abs=5e-5)
        assert float(row["average"]) == pytest.approx(recall, abs=5e-5)
        assert float(row["f1"]) == pytest.approx(f1, abs=5e-5)
        ends = [float(row["average_low"]), float(row["average_high"])]
        assert ends == pytest.approx(wilson_interval(recall, int(row["images"])), abs=5e-5)


def test_confusions_are_scikit_learns(evaluation: Path, truth: Any) -> None:
    labels, logits = truth
    found = {head: np.zeros((10, 10), dtype=int) for head in HEADS}
    for row in rows(evaluation / "confusion.csv"):
        for head in HEADS:
            found[head][int(row["true_index"]), int(row["index"])] += int(row[head])
    for head, scores in logits.items():
        expected = sklearn_metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=range(10))
        assert (found[head] == expected).all()
    pairs = rows(evaluation / "most_confused.csv")
    assert pairs
    assert [int(p["images"]) for p in pairs] == sorted(int(p["images"]) for p in pairs)[::-1]
    for pair in pairs:
        true, named = int(pair["true_label"]), int(pair["label"])
        assert true != named
        assert int(pair["images"]) == found["average"][true, named]
        assert pair["claimable"] == ("no" if true == 8 else "yes")
    np.fill_diagonal(found["average"], 0)
    assert sum(int(pair["images"]) for pair in pairs) == found["average"].sum()


def test_every_image_has_its_row(evaluation: Path, data: Path, classifier: Classifier) -> None:
    unreadable = rows(evaluation / "unreadable.csv")
    assert [(row["filename"], row["true_label"], row["error"]) for row in unreadable] == [
        ("test/0/0003.png", "0", "decode_failed"),
        ("test/7/a.jpg", "7", "unsupported_image"),
    ]
    table = rows(evaluation / "predictions.csv")
    files = sorted(f.relative_to(data).as_posix() for f in data.rglob("*.*"))
    assert [row["filename"] for row in table] == files
    for row in table:
        assert row["true_label"] == row["filename"].split("/")[1]
        if row["error"]:
            assert (row["label"], row["agree"], row["dist_prob"]) == ("", "", "")
            continue
        (expected,) = classifier.predict([data / row["filename"]], experts=True)
        assert expected.experts is not None
        assert row["label"] == expected.label
        assert float(row["prob"]) == pytest.approx(expected.probability, abs=1e-6)
        assert row["correct"] == str(expected.label == row["true_label"]).lower()
        assert row["cls_label"] == expected.experts.cls[0].label
        assert row["dist_label"] == expected.experts.dist[0].label
        assert row["agree"] == str(expected.experts.agree).lower()
    assert sum(row["error"] != "" for row in table) == 2


def test_pictures_show_something(evaluation: Path) -> None:
    scopes = ("all", *GROUPS, "many", "medium", "few")
    names = {"confusion.png", *(f"reliability_{scope}.png" for scope in scopes)}
    assert {file.name for file in evaluation.glob("*.png")} == names
    seen = set()
    for name in names:
        with Image.open(evaluation / name) as image:
            image.load()
            assert min(image.size) > 500
            colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert colours is not None
        white = sum(count for count, colour in colours if colour == (255, 255, 255))
        assert len(colours) > 50
        assert white < 0.97 * image.size[0] * image.size[1]
        seen.add((evaluation / name).read_bytes())
    assert len(seen) == len(names)


def test_what_is_printed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "evaluation"
    assert run("--data", data, "--output", output, "--no-plots", "--min-images", 12) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("digits (version ")
    assert "97 test images" in captured.out
    assert "1 of 3 head classes have fewer than 12 test images: nothing" in captured.out
    assert "1 of 4 mid classes have fewer than 12 test images (1 have none): " in captured.out
    assert "2 images could not be read (decode_failed: 1, unsupported_image: 1)" in captured.out
    assert captured.err == f"written to {output}\n"
    assert not list(output.glob("*.png"))
    assert not (output / "predictions.csv").exists()
    assert rows(output / "per_class.csv")[0]["claimable"] == "no"


@pytest.fixture
def small(tmp_path: Path, class_tree: ClassTree) -> Path:
    """Three pictures of two classes."""
    return class_tree(tmp_path / "small", {"1": 2, "4": 1})


def test_all_well_is_status_0(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    output.mkdir()
    assert run("--data", small, "--output", output, "--no-plots") == 0
    assert not (output / "unreadable.csv").exists()
    assert json.loads((output / "metrics.json").read_text())["split"] == "all"


def test_rows_whose_file_is_gone_are_counted(small: Path, tmp_path: Path) -> None:
    table = small / "images.csv"
    lines = ["1/0.png,1,train", "1/0.png,1,val", "4/0.png,4,val", "gone.png,4,val", "x.png,4,train"]
    table.write_text("\n".join(["image_path,label,split", *lines]), encoding="utf-8")
    output = tmp_path / "evaluation"
    assert run("--data", table, "--output", output, "--no-plots") == 3
    (row,) = rows(output / "unreadable.csv")
    assert (row["filename"], row["error"]) == ("gone.png", "open_failed")
    assert json.loads((output / "metrics.json").read_text())["num_images"] == 2


def test_list_files(small: Path, tmp_path: Path) -> None:
    (small / "lt_test.txt").write_text("1/0.png 0\n1/1.png 0\n4/0.png 1\n4/no.png 1\n")
    output = tmp_path / "evaluation"
    assert run("--data", small / "lt_test.txt", "--output", output, "--no-plots") == 3
    assert [row["images"] for row in rows(output / "per_class.csv")][:5] == [*"02001"]


def test_on_its_own_data_a_bundle_is_judged_by_what_its_run_held_out(
    tmp_path: Path,
    class_tree: ClassTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of images without marked splits, most of which it was trained on."""
    labelled = class_tree(tmp_path / "data", {str(digit): 6 for digit in range(10)})
    recipe = dict(zip(DRAWING, (None, 0, 0.2, 0), strict=True))
    splits = load_splits(labelled, recipe)
    known = {"recipe": recipe, "train_files_sha256": splits.train_sha256}
    bundle = open_bundle(DIGITS)
    own = replace(bundle, manifest=bundle.manifest | known)
    monkeypatch.setattr("deitlt.commands.evaluate.find_bundle", lambda _: own)
    where = ["--data", labelled, "--variant", "float32", "--device", "cpu", "--no-plots"]
    assert run(*where, "--output", tmp_path / "held-out") == 0
    metrics = json.loads((tmp_path / "held-out" / "metrics.json").read_text())
    assert splits.val is not None
    assert (metrics["split"], metrics["num_images"]) == ("val", len(splits.val))
    assert "warning" not in capsys.readouterr().err
    assert run(*where, "--split", "all", "--output", tmp_path / "all") == 0
    assert f"trained on {len(splits.train)} of these 60 images" in capsys.readouterr().err
