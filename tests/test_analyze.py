"""`training.analyze` from the command line: a whole report, and one line for each mistake."""

import csv
import io
import re
import shutil
import sys
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deitlt.labelled import read_labelled
from deitlt.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from deitlt.student import StudentConfig, build_student
from deitlt.weights import Card, load_tensors, save_tensors, save_weights
from tests.bundle_support import DIGITS
from tests.export_support import card_of, noise_student, save_student
from training import analyze, evaluate
from training.analysis.omissions import unreadable
from training.analysis.teacher_views import ask_teacher
from training.analyze import AnalyzeCommand, main
from training.recipes import students
from training.teachers.labelling import load_teacher
from training.teachers.networks import build_teacher

COUNTS = [40, 30, 20, 15, 10, 8, 6, 4, 3, 2]
SPEC = PreprocessSpec(16, 1.0, IMAGENET_MEAN, IMAGENET_STD)
PLOTS = {
    *("accuracy", "rollout", "rollout_mean", "attention_distance", "feature_rank"),
    *("cosine_distance", "teacher_entropy", "convergence", "confusion", "counts_accuracy"),
}
CURVES = "epoch,loss,cls_dist_cosine,val_average_balanced\n1,2.5,0.9,0.1\n2,1.25,0.5,0.75\n"
NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs named student, plain (a baseline) and teacher, with weights that are noise."""
    folder = tmp_path_factory.mktemp("runs")
    model = noise_student(StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10))
    fields: dict[str, Any] = {"classes": NAMES, "train_counts": COUNTS}
    card = card_of(model, SPEC, **fields)
    save_student(folder / "student", model, card)
    (folder / "student" / "results.csv").write_text(CURVES)
    plain = build_student(
        StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10, distilled=False)
    )
    (folder / "plain").mkdir()
    weights = folder / "plain" / "student.safetensors"
    save_weights(weights, plain, Card(**{**vars(card), "architecture": plain.architecture()}))
    architecture = {"name": "resnet32", "classifier": "cosine", "num_classes": 10}
    teacher = {**vars(card), "kind": "teacher", "architecture": architecture}
    teacher["preprocess"] = PreprocessSpec(8)
    (folder / "teacher").mkdir()
    torch.manual_seed(0)
    save_weights(folder / "teacher" / "teacher.safetensors", build_teacher(architecture),
                 Card(**teacher))  # fmt: skip
    (folder / "stranger").mkdir()
    stranger = {**teacher, "classes": NAMES[::-1]}
    save_weights(folder / "stranger" / "teacher.safetensors", build_teacher(architecture),
                 Card(**stranger))  # fmt: skip
    (folder / "teacher" / "results.csv").write_text("epoch,loss,val_teacher_balanced\n1,2,0.5\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four test images of each class, one of them damaged."""
    from training.digits import write_digits

    folder = tmp_path_factory.mktemp("analysed")
    write_digits(folder / "all")
    for digit in NAMES:
        for number in range(4):
            file = Path("test", digit, f"{number:04d}.png")
            (folder / "few" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "all" / file, folder / "few" / file)
    (folder / "few" / "test" / "3" / "0001.png").write_bytes(b"\x89PNG but no more")
    return folder / "few"


@pytest.fixture(scope="module")
def report(runs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "report"
    named = [str(runs / name) for name in ("student", "plain", "teacher")]
    options = ["--teacher", str(runs / "teacher"), "--images", "30"]
    assert main([*named, "--data", str(data), "--output", str(output), *options]) == 0
    return output


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


class Links(HTMLParser):
    """All that a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset"):
                self.links.append(value or "")
            elif name == "id":
                self.places.add(value or "")


def test_every_plot_is_a_picture_with_figures_behind_it(report: Path) -> None:
    assert {file.stem for file in report.glob("*.png")} == PLOTS
    for name in PLOTS:
        colours = Image.open(report / f"{name}.png").convert("RGB").getcolors(1 << 24)
        assert len(colours or []) > 20, name
        assert len(table(report / f"{name}.csv")) > 0, name


def test_the_page_holds_everything_itself(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    pictures = [link for link in links.links if link.startswith("data:image/png;base64,")]
    assert len(pictures) == 2 * len(PLOTS)
    inside = [link[1:] for link in links.links if link.startswith("#")]
    assert len(pictures) + len(inside) == len(links.links)
    assert set(inside) <= links.places
    assert "script" not in links.tags
    assert "default-src 'none'" in text
    light = {b64decode(link.partition(",")[2]) for link in pictures}
    assert (report / "confusion.png").read_bytes() in light
    for data in light:
        Image.open(io.BytesIO(data)).verify()
    assert re.search(r"torch \d", text)
    assert "python -m training.analyze" in text


def test_accuracy_is_what_evaluate_says(
    report: Path, runs: Path, data: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(data, tmp_path / "whole")
    (whole / "test" / "3" / "0001.png").unlink()
    command = evaluate.EvaluateCommand(run=runs / "student", data=whole, output=tmp_path / "o")
    expected = evaluate.evaluate(command)
    found = {
        (row["head"], row["group"]): float(row["accuracy"])
        for row in table(report / "accuracy.csv")
        if row["run"] == "student" and row["low"]
    }
    for head, figures in expected.items():
        assert figures.overall.value == pytest.approx(found[head, "overall"], rel=1e-5)
        assert figures.groups["tail"].value == pytest.approx(found[head, "tail"], rel=1e-5)
    cells = table(report / "confusion.csv")
    assert sum(int(cell["images"]) for cell in cells) == 39
    right = sum(int(cell["images"]) for cell in cells if cell["label"] == cell["predicted"])
    assert right / 39 == pytest.approx(expected["average"].overall.value)


def test_each_run_gives_what_it_has(report: Path) -> None:
    assert {row["run"] for row in table(report / "convergence.csv")} == {"student", "teacher"}
    ranks = table(report / "feature_rank.csv")
    assert {(row["run"], row["expert"]) for row in ranks} == {
        *(("student", "cls"), ("student", "dist"), ("plain", "cls"))
    }
    assert all(1 <= int(row["rank"]) <= 30 for row in ranks)
    distances = table(report / "attention_distance.csv")
    assert [row["run"] for row in distances] == ["student"] * 16 + ["plain"] * 16
    # Rank and tail: 30 images from 10 classes, 9 of the three rarest.
    assert {(row["images"], row["tail_images"]) for row in ranks} == {("30", "9")}
    cosine = table(report / "cosine_distance.csv")
    assert [float(row["value"]) for row in cosine] == pytest.approx([0.1, 0.5])


def test_rollouts_of_the_average_are_shares(report: Path) -> None:
    rows = table(report / "rollout_mean.csv")
    for expert in ("CLS", "DIST", "mean"):
        shares = [float(row["share"]) for row in rows if row["expert"] == expert]
        assert len(shares) == 16
        assert 0 < sum(shares) < 1
    pictures = {row["picture"] for row in table(report / "rollout.csv")}
    # Two of each of the three rarest classes.
    assert sorted(Path(picture).parent.name for picture in pictures) == [*"778899"]


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_teacher_is_asked_as_the_student_asked_it(
    renormalise: bool, runs: Path, tmp_path: Path
) -> None:
    tensors, fields = load_tensors(runs / "student" / "student.safetensors")
    fields["recipe"] = {"name": "x", "renormalise": renormalise}
    save_tensors(tmp_path / "student.safetensors", tensors, fields)
    command = AnalyzeCommand(
        runs=(tmp_path,), data=tmp_path, output=tmp_path, teacher=runs / "teacher"
    )
    teacher = analyze._load_teacher(command, torch.device("cpu"))
    assert teacher is not None
    assert teacher.renormalise == renormalise


def test_the_teacher_answers_for_three_views(report: Path) -> None:
    rows = table(report / "teacher_entropy.csv")
    views = [row["view"] for row in rows]
    assert {view: views.count(view) for view in views} == {
        "clean": 30, "strong": 30, "strong and mixed": 30
    }  # fmt: skip
    assert all(0 <= float(row["entropy_nats"]) <= np.log(10) + 1e-6 for row in rows)


@pytest.mark.parametrize(
    ("fields", "views"),
    [
        ({"view": "weak", "mixup": 0.0, "cutmix": 0.0}, ["clean", "weak"]),
        ({"mixup": 0.0, "cutmix": 0.0}, ["clean", "strong"]),
        (
            {"view": "three_augment", "mixup": 0.0},
            ["clean", "3-Augment", "3-Augment and mixed"],
        ),
    ],
)
def test_a_teacher_is_asked_what_the_students_recipe_showed_it(
    runs: Path, data: Path, fields: dict[str, Any], views: list[str]
) -> None:
    device = torch.device("cpu")
    teacher = load_teacher(runs / "teacher", SPEC)
    recipe = replace(students.digits(), img_size=16, **fields)
    images = read_labelled(data)["test"].subset(np.arange(4))
    answers = ask_teacher(teacher, images, SPEC, recipe, device, {})
    assert [answer.view for answer in answers] == views


def test_a_file_that_cannot_be_read_is_listed(report: Path) -> None:
    (fault,) = table(report / "unreadable.csv")
    assert fault["path"].endswith("3/0001.png")
    assert "damaged" in fault["reason"]
    assert "0001.png" in (report / "report.html").read_text(encoding="utf-8")


def test_a_file_that_the_teacher_cannot_read_is_listed(runs: Path, data: Path) -> None:
    images = read_labelled(data)["test"]
    faults: dict[Path, str] = {}
    teacher = load_teacher(runs / "teacher")
    views = ask_teacher(teacher, images, SPEC, None, torch.device("cpu"), faults)
    assert [len(view.entropies) for view in views] == [39, 39, 39]
    assert list(faults) == [data / "test" / "3" / "0001.png"]
    section = unreadable([], faults)
    assert section is not None
    assert "0001.png" in section.files["unreadable"]


def complaint(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_what_a_kill_has_left_is_cleared_up_at_the_next_start(
    runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".new.old").mkdir()
    (tmp_path / ".new.old" / "report.html").touch()
    (tmp_path / ".new.abcd1234.unfinished").mkdir()
    where: list[str | Path] = ["--data", data, "--output", tmp_path / "new"]
    assert "holds a report already" in complaint(capsys, runs / "student", *where)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_mistakes_get_one_line_and_leave_nothing(
    runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where: list[str | Path] = ["--data", data, "--output", tmp_path / "new"]
    student = runs / "student"
    assert "is a bundle" in complaint(capsys, DIGITS, *where)
    assert "there is no such run folder" in complaint(capsys, tmp_path / "none", *where)
    assert "no such file" in complaint(capsys, runs / "teacher", *where)
    assert "at least 1" in complaint(capsys, student, *where, "--images", "0")
    assert "no image of a tail class" in complaint(capsys, student, *where, "--images", "1")
    assert "neither a student" in complaint(capsys, student, tmp_path, *where)
    assert "no such picture" in complaint(capsys, student, *where, "--pictures", "x.png")
    assert "not a teacher" in complaint(
        capsys, student, *where, "--teacher", student / "student.safetensors"
    )
    assert "has other classes than the student" in complaint(
        capsys, student, *where, "--teacher", runs / "stranger"
    )
    assert "has no val images" in complaint(capsys, student, *where, "--split", "val")
    assert "no such folder" in complaint(
        capsys, student, "--data", tmp_path / "none", "--output", tmp_path / "new"
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_no_report_is_replaced(
    runs: Path, data: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[str | Path] = [runs / "student", "--data", data, "--output"]
    assert "holds a report already; pass --overwrite" in complaint(capsys, *words, report)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert "is no report" in complaint(capsys, *words, other, "--overwrite")
    assert "is no report" in complaint(capsys, *words, other)
    assert (other / "thesis.txt").read_text() == "years of work"


def test_chosen_pictures_are_shown_and_a_report_replaced(
    runs: Path,
    tmp_path: Path,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Drawing takes seconds, and is seen above.
    monkeypatch.setattr(analyze, "draw", lambda *_: b"no picture")
    tree = class_tree(tmp_path / "data" / "test", dict.fromkeys(NAMES, 1)).parent
    output = tmp_path / "report"
    output.mkdir()
    (output / "report.html").write_text("old")
    picture = tree / "test" / "0" / "0.png"
    words = [runs / "plain", "--data", tree, "--output", output, "--overwrite"]
    assert main([*map(str, words), "--pictures", str(picture)]) == 0
    assert {row["picture"] for row in table(output / "rollout.csv")} == {str(picture)}
    assert not (output / "cosine_distance.png").exists()  # it has one expert and no curves
    assert not (output / "convergence.png").exists()
    assert (output / "report.html").read_text(encoding="utf-8") != "old"


def test_without_matplotlib_one_line_names_it(
    runs: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = complaint(capsys, runs / "student", "--data", data, "--output", tmp_path / "new")
    assert "matplotlib is missing" in line
