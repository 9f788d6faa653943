"""`deitlt predict`: every input keeps its rows in order, and wrong use is one line and status 2."""

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitlt.batch.pipeline import predict_iter
from deitlt.batch.sources import Source
from deitlt.classifier import Classifier
from deitlt.errors import DecodeFailed, ImageError, UsageError
from deitlt.prediction import Options, Prediction
from deitlt.preprocess import ImageLike
from tests.predict_support import predict as run
from tests.predict_support import read_rows as rows

Png = Callable[[int], bytes]

PLAIN = ["filename", "rank", "index", "label", "prob", "group", "error", "model_version"]
EXPERTS = ["cls_label", "cls_prob", "dist_label", "dist_prob", "agree"]


@pytest.fixture
def photos(tmp_path: Path, png: Png) -> Path:
    """Four pictures in a tree, one file that is none, and a hidden one."""
    root = tmp_path / "photos"
    (root / "sub" / "deep").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.PNG", "sub/c.png", "sub/deep/d.png"]):
        (root / name).write_bytes(png(number))
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(png(0))
    return root


def test_a_folder(
    photos: Path, tmp_path: Path, classifier: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    assert run(photos, "--output", output) == 0
    found = rows(output)
    assert list(found[0]) == PLAIN
    assert [row["filename"] for row in found] == ["a.PNG", "b.png", "sub/c.png", "sub/deep/d.png"]
    for row in found:
        expected = classifier.predict([photos / row["filename"]])[0]
        assert row["label"] == expected.label
        assert row["index"] == str(expected.index)
        assert float(row["prob"]) == pytest.approx(expected.probability, abs=1e-6)
        assert row["group"] == expected.group
        assert (row["rank"], row["error"]) == ("1", "")
        assert row["model_version"] == classifier.bundle.version
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("4 images in")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "rows.csv.partial").exists()


def test_inputs_keep_their_order_and_names(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    pattern = str(photos / "**" / "[cd].png")
    assert run(photos / "b.png", pattern, photos / "a.PNG", "--output", output) == 0
    names = [photos / name for name in ("b.png", "sub/c.png", "sub/deep/d.png", "a.PNG")]
    assert [row["filename"] for row in rows(output)] == [name.as_posix() for name in names]


def test_images_of_two_folders_keep_apart(
    photos: Path, tmp_path: Path, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.png").write_bytes(png(9))
    monkeypatch.chdir(tmp_path)
    assert run("photos", "more", photos / "sub", "--output", "rows.csv") == 0
    names = [row["filename"] for row in rows(Path("rows.csv"))]
    assert names == [
        *(f"photos/{name}" for name in ("a.PNG", "b.png", "sub/c.png", "sub/deep/d.png")),
        "more/b.png",
        *(f"{photos.as_posix()}/sub/{name}" for name in ("c.png", "deep/d.png")),
    ]
    assert run("photos", "more/b.png", "--output", "rows.csv", "--overwrite") == 0
    assert [row["filename"] for row in rows(Path("rows.csv"))] == names[:5]


def test_more_images_than_the_queue_holds_keep_their_order(
    tmp_path: Path, png: Png, classifier: Classifier
) -> None:
    sources = [Source(tmp_path / f"{n}.png", f"{n}.png") for n in range(90)]
    paths = [tmp_path / source.filename for source in sources]
    for number, path in enumerate(paths):
        path.write_bytes(png(number) if number != 7 else b"")
    results = list(predict_iter(classifier, sources, Options(), num_workers=2))
    assert [source for source, _ in results] == sources
    expected = classifier.predict_each(paths)
    for number, (_, result) in enumerate(results):
        single = expected[number]
        if number == 7:
            assert isinstance(result, DecodeFailed)
        else:
            assert isinstance(result, Prediction)
            assert isinstance(single, Prediction)
            assert result.probability == pytest.approx(single.probability, abs=1e-5)


@pytest.mark.parametrize("experts", [False, True])
def test_columns_and_ranks(
    experts: bool, photos: Path, tmp_path: Path, classifier: Classifier
) -> None:
    output = tmp_path / "rows.csv"
    flags = ["--experts"] if experts else []
    assert run(photos, "--output", output, "--topk", 3, "-j", 2, *flags) == 0
    found = rows(output)
    assert list(found[0]) == (PLAIN[:5] + EXPERTS + PLAIN[5:] if experts else PLAIN)
    assert [row["rank"] for row in found] == ["1", "2", "3"] * 4
    assert all((row["group"] != "") == (row["rank"] == "1") for row in found)
    if experts:
        answer = classifier.predict([photos / "a.PNG"], experts=True)[0].experts
        assert answer is not None
        assert [row["cls_label"] for row in found[:3]] == [s.label for s in answer.cls[:3]]
        assert [row["dist_label"] for row in found[:3]] == [s.label for s in answer.dist[:3]]
        assert [row["agree"] for row in found[:3]] == [str(answer.agree).lower(), "", ""]


def test_more_ranks_than_classes_gives_all(photos: Path, tmp_path: Path) -> None:
    assert run(photos / "b.png", "--output", tmp_path / "o.csv", "--topk", 99) == 0
    assert len(rows(tmp_path / "o.csv")) == 10


def test_blend_reaches_the_classifier(photos: Path, tmp_path: Path, classifier: Classifier) -> None:
    assert run(photos / "b.png", "--output", tmp_path / "o.csv", "--blend", 1) == 0
    expected = classifier.predict([photos / "b.png"], blend=1)[0]
    assert float(rows(tmp_path / "o.csv")[0]["prob"]) == pytest.approx(
        expected.probability, abs=1e-6
    )


def test_a_corrupt_image_keeps_its_row(
    photos: Path, tmp_path: Path, png: Png, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.png").write_bytes(png(0)[:-60])
    (photos / "sub" / "c.png").write_text("<html>")
    (photos / "sub" / "e.png").mkdir()  # a folder is looked into, whatever its name
    output = tmp_path / "rows.csv"
    missing = photos / "gone.png"
    missing.symlink_to(tmp_path / "nowhere")
    assert run(photos, "--output", output, "--topk", 2, "--experts") == 3
    found = rows(output)
    errors = {row["filename"]: row["error"] for row in found if row["error"]}
    assert errors == {
        "b.png": "decode_failed",
        "gone.png": "open_failed",
        "sub/c.png": "unsupported_image",
    }
    for row in found:
        if row["error"]:
            assert row["model_version"]
            empty = set(row) - {"filename", "error", "model_version"}
            assert all(row[column] == "" for column in empty)
    assert [r["filename"] for r in found if r["rank"] != "2"] == [
        "a.PNG",
        "b.png",
        "gone.png",
        "sub/c.png",
        "sub/deep/d.png",
    ]
    assert "5 images" in (line := capsys.readouterr().err)
    assert "3 failed (decode_failed 1, open_failed 1, unsupported_image 1); rows in" in line


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["nowhere", "--output", "new.csv"], "nowhere: there is no such file"),
        (["nothing", "--output", "new.csv"], "no images in nothing"),
        (["photos", "--output", "old.csv"], "--overwrite"),
        (["photos", "--output", "old.csv", "-j", "0"], "--overwrite"),
        (["photos", "--output", "rows.txt"], "must be a .csv, .jsonl or .parquet file"),
        (["photos", "--output", "file.csv"], "file.csv.partial: is in the way"),
        (["photos", "--output", "new.csv", "--log", "log.txt"], "must be a .json file"),
        (["photos", "--output", "new.csv", "--log", "missing/log.json"], "no such folder"),
        (["photos", "--output", "new.csv", "--log", "photos.json"], "is a folder; name a file"),
        (["photos", "--output", "new.csv", "--output-type", "odds"], "--output-type"),
        (["photos", "--output", "new.csv", "--embeddings"], "--embeddings needs a .parquet"),
        (["photos", "--output", "new.csv", "-b", "0"], "batch size 0"),
        (
            ["photos", "--output", "new.csv", "--engine", "ray", "--triton", "grpc://a:1"],
            "--triton and --engine ray",
        ),
        (
            ["photos", "--output", "new.csv", "--variant", "fp16", "--triton", "grpc://a:1"],
            "--variant and --triton",
        ),
        (["--filepaths", "gone.txt", "--output", "new.csv"], "gone.txt: there is no such list"),
        (["--filepaths", "photos", "--output", "new.csv"], "photos: is a folder"),
        (["old.csv", "--output", "new.csv"], "old.csv: no column of paths"),
        (["photos", "--output", "nothing"], "is a folder"),
        (["photos", "--output", "missing/rows.csv"], "no such folder"),
        (["photos", "--output", "new.csv", "--topk", "0"], "top_k is 0"),
        (["photos", "--output", "new.csv", "--topk", "many"], "--topk"),
        (["photos", "--output", "new.csv", "--blend", "1.5"], "blend is 1.5"),
        (["photos", "--output", "new.csv", "--blend", "nan"], "blend is nan"),
        (["photos", "--output", "new.csv", "-j", "-3"], "workers"),
        (["photos", "--output", "new.csv", "--device", "tpu"], "--device"),
        (["photos", "--output", "new.csv", "--model", "photos"], "not a bundle"),
        (["photos", "--output", "new.csv", "--frobnicate"], "--frobnicate"),
        (["photos"], "--output"),
        (["photos", "--ouput", "new.csv"], "unrecognized arguments: --ouput;"),
        (["--output", "new.csv"], "INPUT"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    fragment: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("nothing").mkdir()
    Path("photos.json").mkdir()
    Path("old.csv").write_text("former rows")
    Path("file.csv.partial").touch()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert fragment in captured.err
    assert captured.err.startswith("deitlt")
    assert Path("old.csv").read_text() == "former rows"
    assert not Path("new.csv").exists()
    assert not Path("new.csv.partial").exists()


def test_a_changed_bundle_is_refused_in_one_line(
    photos: Path, tmp_path: Path, bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bytearray((bundle_path / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (bundle_path / "model.onnx").write_bytes(model)
    assert run(photos, "--output", tmp_path / "o.csv", "--model", bundle_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model.onnx: changed" in error


def test_overwrite_replaces_the_rows(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "old.csv"
    output.write_text("former rows")
    assert run(photos, "--output", output, "--overwrite") == 0
    assert len(rows(output)) == 4


def test_unicode_and_quoted_names(tmp_path: Path, png: Png) -> None:
    names = ["ünï,code.png", '"quoted".png', "line\nbreak.png", "日本 語.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(png(0))
    assert run(tmp_path / "in", "--output", tmp_path / "o.csv") == 0
    assert sorted(row["filename"] for row in rows(tmp_path / "o.csv")) == sorted(names)


def test_a_name_that_is_no_unicode_comes_back_byte_for_byte(tmp_path: Path, png: Png) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(0))
    assert run(tmp_path / "in", "--output", tmp_path / "o.csv") == 0
    assert (tmp_path / "o.csv").read_bytes().splitlines()[1].startswith(b"caf\xe9.png,1,")
    odd = (tmp_path / "in").rename(tmp_path / os.fsdecode(b"d\xe9p\xf4t"))
    log = odd.with_suffix(".json")
    assert run(odd, "--output", tmp_path / "p.csv", "--log", log) == 0
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "o.csv").read_bytes()
    assert str(odd) in json.loads(log.read_bytes())["command"]


def test_predict_iter_takes_what_predict_takes_one_by_one(
    tmp_path: Path, png: Png, classifier: Classifier
) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    picture = Image.open(tmp_path / "a.png")
    kinds: list[ImageLike] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png(0),
        picture,
        np.asarray(picture),
        b"",
    ]
    taken = 0

    def endless() -> Iterator[ImageLike]:
        nonlocal taken
        for image in cycle(kinds):
            taken += 1
            yield image

    results = classifier.predict_iter(endless(), Options(2, experts=True), num_workers=2)
    first = list(islice(results, 12))
    assert taken < 1000
    (expected,) = classifier.predict([png(0)], top_k=2, experts=True)
    for number, result in enumerate(first):
        if number % 6 == 5:
            assert isinstance(result, ImageError)
            assert result.code == "decode_failed"
        else:
            assert isinstance(result, Prediction)
            assert result.label == expected.label
            assert result.probability == pytest.approx(expected.probability, abs=1e-5)
            assert result.experts is not None
            assert len(result.top_k) == 2
    for one in (png(0), tmp_path / "a.png", "a.png", picture):
        with pytest.raises(UsageError, match="takes many images"):
            classifier.predict_iter(one)  # type: ignore[arg-type]


def test_pillows_warnings_do_not_reach_the_user(
    tmp_path: Path, encode: Callable[..., bytes], pixels: Callable[..., object]
) -> None:
    tiff = encode(pixels(60, 40), "TIFF")
    (tmp_path / "cut.tiff").write_bytes(tiff[:100])
    command = [sys.executable, "-m", "deitlt.cli", "predict", "cut.tiff", "--output", "o.csv"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("1 images")


def test_a_terminal_sees_how_far_it_is(photos: Path, tmp_path: Path) -> None:
    (photos / "a.PNG").write_bytes(b"")
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 120))
    words = ["predict", str(photos), "--output", str(tmp_path / "o.csv"), "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-m", "deitlt.cli", *words], stderr=end) as process:
        os.close(end)
        shown = b""
        try:
            while data := os.read(terminal, 4096):
                shown += data
        except OSError:  # the other end is closed
            os.close(terminal)
    assert process.returncode == 3
    lines = shown.decode().splitlines()
    assert any("image/s" in line and "failed=1" in line for line in lines)
    assert "4 images in" in shown.decode()
