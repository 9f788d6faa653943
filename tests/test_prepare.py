"""CIFAR as PNG files: lossless, in the original order, all or nothing; made from tiny archives."""

import hashlib
import pickle
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from deitlt.labelled import read_labelled
from deitlt.longtail import long_tailed_subset
from training import prepare
from training.prepare import main

CLASSES = ["ant", "bee", "cat"]
Published = Callable[[Path], dict[str, Any]]


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def name(kind: Any) -> str:
    return str(kind.__name__).lower()


@pytest.fixture
def published(kind: Any, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Writes a set of 3 classes as it is published, and has torchvision expect its checksums."""

    def make(root: Path) -> dict[str, Any]:
        folder = root / kind.base_folder
        folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        label_key = "labels" if kind is CIFAR10 else "fine_labels"
        truth: dict[str, Any] = {}
        for split, list_name in (("train", "train_list"), ("test", "test_list")):
            entries, parts = [], []
            for file_name, _ in getattr(kind, list_name):
                number = 24 if split == "train" else 6
                labels = generator.permutation(np.arange(number) % 3).tolist()
                data = generator.integers(0, 256, (number, 3072), dtype=np.uint8)
                (folder / file_name).write_bytes(pickle.dumps({"data": data, label_key: labels}))
                entries.append([file_name, md5(folder / file_name)])
                parts.append((data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels))
            monkeypatch.setattr(kind, list_name, entries)
            all_labels = [label for _, labels in parts for label in labels]
            truth[split] = np.concatenate([pixels for pixels, _ in parts]), all_labels
        meta = folder / kind.meta["filename"]
        meta.write_bytes(pickle.dumps({kind.meta["key"]: CLASSES}))
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
        with tarfile.open(root / kind.filename, "w:gz") as archive:
            archive.add(folder, kind.base_folder)
        monkeypatch.setattr(kind, "tgz_md5", md5(root / kind.filename))
        return truth

    return make


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_the_tree_holds_the_very_pixels_in_the_original_order(
    name: str, published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = published(tmp_path / "source")
    command = [name, "--output", str(tmp_path / "out"), "--source", str(tmp_path / "source")]
    assert main([*command, "--no-download"]) == 0
    splits = read_labelled(tmp_path / "out")
    assert list(splits) == ["train", "test"]
    for split, (pixels, labels) in truth.items():
        images = splits[split]
        assert images.classes == CLASSES
        originals = [int(path.stem) for path in images.paths]
        assert originals == sorted(range(len(labels)), key=lambda i: (labels[i], i))
        assert images.labels.tolist() == [labels[i] for i in originals]
        for path, index in zip(images.paths, originals, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels[index])
    number = len(truth["train"][1])
    assert f"{number} training and 6 test images of 3 classes" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_the_long_tailed_subset_is_the_papers(
    name: str, published: Published, tmp_path: Path
) -> None:
    _, labels = published(tmp_path / "source")["train"]
    out = tmp_path / "out"
    assert main([name, "--output", str(out), "--source", str(tmp_path / "source")]) == 0
    train = read_labelled(out)["train"]
    drawn = long_tailed_subset(train.labels, 3, 4)
    # LDAM-DRW on the original set: global legacy generator, seed 0, classes ascending.
    np.random.seed(0)
    expected: list[int] = []
    for label in range(3):
        indices = np.where(np.array(labels) == label)[0]
        np.random.shuffle(indices)
        expected += indices[: int(len(labels) / 3 * 0.25 ** (label / 2.0))].tolist()
    assert [int(train.paths[i].stem) for i in drawn] == expected


def test_a_packed_source_is_enough(
    name: str, kind: Any, published: Published, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    published(tmp_path / "made")
    source.mkdir()
    (tmp_path / "made" / kind.filename).rename(source / kind.filename)
    command = [name, "--output", str(tmp_path / "out"), "--source", str(source), "--no-download"]
    assert main(command) == 0
    assert set(read_labelled(tmp_path / "out")) == {"train", "test"}


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--no-download"], "--no-download needs --source"),
        (["--no-download", "--source", "nowhere"], "nowhere: holds no sound cifar-10"),
        ([], "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz: cannot be downloaded"),
        (["--source", "kept"], "no network in tests"),
        (["--output", "there"], "there: exists already"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    options: list[str],
    fragment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["cifar10", "--output", "out", *options]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert len(error.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "kept"}


def test_a_damaged_source_is_refused(
    name: str,
    kind: Any,
    published: Published,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published(tmp_path / "source")
    (tmp_path / "source" / kind.filename).unlink()
    (tmp_path / "source" / kind.base_folder / kind.test_list[0][0]).write_bytes(b"\x80")
    command = [name, "--output", str(tmp_path / "out"), "--source", str(tmp_path / "source")]
    assert main([*command, "--no-download"]) == 2
    assert "holds no sound" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(
    name: str,
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published(tmp_path / "source")
    write = prepare._write_split

    def interrupted(folder: Path, images: Any) -> None:
        write(folder, images)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_write_split", interrupted)
    where = ["--output", str(tmp_path / "out"), "--source", str(tmp_path / "source")]
    assert main([name, *where]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("kind_name", ["mnist", "CIFAR10"])
def test_other_sets_are_refused(kind_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([kind_name, "--output", "out"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
