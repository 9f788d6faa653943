"""What `training.analyze` takes for a run, and what it refuses before it has spent any time."""

import json
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deitlt.bundle import MANIFEST, write_bundle
from deitlt.errors import UsageError
from deitlt.metrics import report_answers
from deitlt.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from deitlt.run_splits import pick_split
from deitlt.student import StudentConfig, build_student
from tests.export_support import card_of, export, noise_student, save_student
from training import analyze
from training.analysis import study as studies
from training.analysis import tables
from training.analysis.gallery import gallery
from training.analysis.runs import check_runs, load_run, name_runs
from training.scoring import head_reports, student_logits

SPEC = PreprocessSpec(16, 1.0, IMAGENET_MEAN, IMAGENET_STD)
NAMES = [str(digit) for digit in range(10)]
CONFIG = StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10)
CURVES = "epoch,loss,cls_dist_cosine,val_average_balanced\n1,2.5,0.9,0.1\n2,1.25,0.5,0.75\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "student"
    model = noise_student(CONFIG)
    card = card_of(model, SPEC, classes=NAMES, train_counts=list(range(100, 0, -10)))
    save_student(folder, model, card)
    (folder / "results.csv").write_text(CURVES)
    return folder


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
) -> Path:
    folder = tmp_path_factory.mktemp("data") / "all"
    return class_tree(folder / "test", dict.fromkeys(NAMES, 2)).parent


@pytest.fixture(scope="module")
def bundle(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    assert export(run, folder, data, "--weights") == 0
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds and is seen elsewhere."""
    monkeypatch.setattr(analyze, "draw", lambda *_: b"no picture")


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be looked at: what is wrong is to be said before."""

    def study(*_: Any) -> None:
        raise AssertionError("time was spent")

    monkeypatch.setattr(analyze, "study", study)


def complaint(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert analyze.main([str(word) for word in words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_a_bundle_with_weights_says_what_its_run_says(
    run: Path, bundle: Path, data: Path, tmp_path: Path, undrawn: None
) -> None:
    reports = {}
    for name, source in (("run", run), ("bundle", bundle)):
        output = tmp_path / name
        assert analyze.main([str(source), "--data", str(data), "--output", str(output)]) == 0
        reports[name] = {
            file.name: file.read_text(encoding="utf-8").replace(f"\n{source.name},", "\nit,")
            for file in output.glob("*.csv")
        }
    assert reports["run"] == reports["bundle"]
    assert {"attention_distance.csv", "rollout.csv", "cosine_distance.csv"} <= set(reports["run"])


def test_a_bundle_without_weights_or_with_others_gets_one_line(
    run: Path,
    bundle: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    unused: None,
) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))

    def fill(folder: Path) -> dict[str, Any]:
        for file in set(manifest["files"]) - {"student.safetensors", "results.csv"}:
            shutil.copy(bundle / file, folder)
        kept = {"schema_version", "files", "sha256"}
        return {name: value for name, value in manifest.items() if name not in kept}

    bare = write_bundle(tmp_path / "bare", fill).path
    where: list[str | Path] = ["--data", data, "--output", tmp_path / "new"]
    several: list[list[str | Path]] = [[bare], [run, bare]]
    for words in several:
        assert "export it with --weights, or name the run" in complaint(capsys, *words, *where)
    changed = shutil.copytree(bundle, tmp_path / "changed")
    other = noise_student(CONFIG)
    other.head.weight.data += 1
    save_student(changed, other, load_run(run)[1])
    line = complaint(capsys, changed, *where)
    assert "student.safetensors: changed since it was written" in line


def test_one_run_under_two_names_is_refused(run: Path) -> None:
    for again in (run, run / "student.safetensors", run.parent / "." / run.name):
        with pytest.raises(UsageError, match="is named twice"):
            check_runs([run, again])


def test_runs_are_called_by_the_least_that_tells_them_apart() -> None:
    def called(*paths: str) -> list[str]:
        return list(name_runs([Path(path) for path in paths]).values())

    assert called("/runs/a", "/runs/b") == ["a", "b"]
    assert called("/x/seed0/tiny", "/x/seed1/tiny") == ["seed0/tiny", "seed1/tiny"]
    assert called("/x/a/tiny", "/x/b/tiny", "/y/b/tiny") == ["x/a/tiny", "x/b/tiny", "y/b/tiny"]


def test_a_place_that_cannot_be_written_is_refused_at_once(
    run: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unused: None,
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    words: list[str | Path] = [run, "--data", data, "--output"]
    assert "notes.txt: is a file; name a folder" in complaint(capsys, *words, file)
    assert "notes.txt: is a file; name a folder" in complaint(capsys, *words, file / "a" / "b")
    line = complaint(capsys, *words, tmp_path / "new", "--pictures", file)
    assert "notes.txt: not an image this program reads" in line

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(analyze, "TemporaryDirectory", refused)
    line = complaint(capsys, *words, tmp_path / "a" / "new")
    assert f"{tmp_path}: cannot be written to (Read-only file system)" in line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert file.read_text() == "mine"


def test_a_full_disk_leaves_the_former_report(
    run: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    output = tmp_path / "report"
    words: list[str | Path] = [run, "--data", data, "--output", output]
    assert analyze.main([str(word) for word in words]) == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}

    def full(path: Path, text: str) -> None:
        if path.name == analyze.PAGE:
            raise OSError(28, "No space left on device")
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr(analyze, "write_text", full)
    line = complaint(capsys, *words, "--overwrite")
    assert f"{output}: cannot be written (No space left on device)" in line
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert list(tmp_path.iterdir()) == [output]


def test_data_without_the_tail_names_its_classes(
    run: Path,
    tmp_path: Path,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
    capsys: pytest.CaptureFixture[str],
    unused: None,
) -> None:
    tree = class_tree(tmp_path / "head" / "test", dict.fromkeys("012", 2)).parent
    line = complaint(capsys, run, "--data", tree, "--output", tmp_path / "new")
    assert "no image of a tail class (7, 8, 9) is among its test images" in line


def test_what_a_report_lacks_stands_in_it(
    run: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    undrawn: None,
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "student.safetensors", bare)
    (bare / "results.csv").write_text("epoch,loss\n")
    output = tmp_path / "report"
    words = [str(bare), "--data", str(data), "--output", str(output)]
    assert analyze.main(words) == 0
    shown = capsys.readouterr().out
    page = (output / "report.html").read_text(encoding="utf-8")
    for text in ("bare: cosine distance over training and learning curves (it has no results.csv "
                 "with an epoch in it)",
                 "teacher: how sure the teacher is (name the run folder"):  # fmt: skip
        assert text in shown
        assert text in page


@pytest.mark.parametrize("distilled", [True, False])
def test_answers_are_those_of_all_scores_at_once(distilled: bool) -> None:
    torch.manual_seed(0)
    shape = StudentConfig(**{**vars(CONFIG), "distilled": distilled})
    model = noise_student(shape) if distilled else build_student(shape).eval()
    images = torch.randn(11, 3, 16, 16)
    labels, counts = np.arange(11) % 10, list(range(10, 0, -1))
    whole = student_logits(model, [images])
    answers = studies.answer(model, images.split(4))
    assert list(answers) == list(whole)
    expected = head_reports(whole, labels, counts)
    for head, said in answers.items():
        assert said.classes.tolist() == whole[head].argmax(axis=1).tolist()
        found = report_answers(labels, said.classes, said.confidence, counts)
        assert found.overall == expected[head].overall
        assert found.ece == pytest.approx(expected[head].ece, abs=1e-6)


def test_scores_are_held_for_a_batch_at_a_time() -> None:
    num_images, num_classes = 320, 4000
    shape = StudentConfig(**{**vars(CONFIG), "num_classes": num_classes})
    batches = (torch.zeros(16, 3, 16, 16) for _ in range(num_images // 16))
    model = build_student(shape).eval()
    tracemalloc.start()
    try:
        answers = studies.answer(model, batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(answers["average"].classes) == num_images
    # One head's probabilities of all images alone would be more.
    assert peak < 8 * num_images * num_classes


def test_a_mean_of_nought_is_no_empty_cell() -> None:
    labels = np.arange(10)
    wrong = report_answers(labels, (labels + 1) % 10, np.ones(10), list(range(10, 0, -1)))
    study: Any = SimpleNamespace(name="it", reports={"cls": wrong})
    rows = {row[2]: row[3] for row in tables.accuracy_rows([study])[1:]}
    assert rows["overall"] == rows["head mid tail mean"] == 0


def test_a_chosen_picture_is_known_however_its_path_is_written(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    split, images = pick_split(data, "test", load_run(run)[1])
    found = studies.study(run, "it", split, images, 20, device)
    monkeypatch.chdir(data / "test")
    shown = gallery(run, found, [Path("8/1.png"), data / "test" / "2" / "0.png"], device)
    assert shown.labels == ["8", "2"]
