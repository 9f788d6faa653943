"""What `deitlt predict` reads: every kind of input, in order, one by one, under the right names."""

import csv
import inspect
import io
import os
import pickle
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from deitlt.batch import remote_files
from deitlt.batch.remote_files import _address
from deitlt.batch.sources import count_sources, find_sources
from deitlt.classifier import Classifier
from deitlt.errors import DataError, OpenFailed, UsageError
from deitlt.labelled import image_files
from deitlt.preprocess import ImageLike, PreprocessSpec, load_pixels
from tests.predict_support import content, error_of, names, predict, read_rows, write_tar

Png = Callable[[int], bytes]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files whose content is their name; the names of images, of others, and hidden ones."""
    root = tmp_path / "tree"
    for name in ("b.png", "a.PNG", "sub/c.jpeg", "sub/deep/d.webp", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".hidden.png").touch()
    (root / ".git").mkdir()
    (root / ".git" / "e.png").touch()
    return root


TREE = ["a.PNG", "b.png", "sub/c.jpeg", "sub/deep/d.webp"]


def test_a_folder_is_sorted_and_hidden_entries_are_left_out(tree: Path) -> None:
    sources = list(find_sources([str(tree)]))
    assert [source.filename for source in sources] == TREE
    assert [content(source).decode() for source in sources] == TREE


def test_links_are_followed_but_not_in_circles(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "e.png").touch()
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "sub" / "self").symlink_to(tree / "sub" / "self")
    (tree / "sub" / "ring.png").symlink_to(tree / "sub" / "ring.png")
    (tree / "sub" / "z").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tree / "sub")
    found = names(tree)
    assert found == [*TREE[:4], "sub/ring.png", "sub/z/e.png"]
    assert [file.relative_to(tree).as_posix() for file in image_files(tree)] == found
    pattern = names(f"{tree}/**/*.png")
    assert pattern == [f"{tree}/{name}" for name in ("b.png", "sub/ring.png", "sub/z/e.png")]


def test_what_is_no_plain_file_is_not_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "pipe.png")
    sources = {source.filename: source for source in find_sources([str(tree)])}
    assert "no plain file" in str(error_of(sources["pipe.png"]))
    (tree / "sub" / "linked.png").symlink_to(tree / "pipe.png")
    for path in tree / "pipe.png", tree / "sub" / "linked.png":  # by a glob, a list, a link
        with pytest.raises(OpenFailed, match="is a pipe or a device"):
            load_pixels(path, PreprocessSpec(16))


def test_an_empty_input_is_no_folder() -> None:
    with pytest.raises(UsageError, match="an INPUT is empty"):
        find_sources([""])


def test_a_folder_that_cannot_be_listed_has_a_row(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("deitlt.batch.sources.os.scandir", refusing)
    sources = list(find_sources([str(tree)]))
    assert [source.filename for source in sources] == ["a.PNG", "b.png", "sub/"]
    assert "Permission denied" in str(error_of(sources[-1]))


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    (tmp_path / "a1.png").touch()
    assert names(tmp_path / "a[1].png") == [f"{tmp_path}/a[1].png"]


def test_a_pattern_is_sorted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [str(tree / name) for name in ("b.png", "sub", "a.PNG")]
    monkeypatch.setattr("deitlt.batch.sources.glob.glob", lambda *_, **__: found)
    assert names(tree / "*") == [f"{tree}/{name}" for name in TREE]


def test_sources_come_one_by_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterable[bytes]:
        while True:
            yield b"b.png\n"

    monkeypatch.chdir(tree)
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": endless()}))
    sources = find_sources(["-"])
    assert {content(source) for source in islice(sources, 1000)} == {b"b.png"}
    assert count_sources(["-"]) is None


@pytest.mark.parametrize("column", ["image_path", "filepath", "path", "filename"])
def test_a_csv_names_files_relative_to_it(column: str, tree: Path) -> None:
    cells = ["sub/c.jpeg", f"{tree}/a.PNG", "gone.png", "", "b.png"]
    with (tree / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["label", f" {column} "], *(["x", cell] for cell in cells)])
    for found in (
        find_sources([str(tree / "list.csv")]),
        find_sources([], [str(tree / "list.csv")]),
    ):
        sources = list(found)
        assert [source.filename for source in sources] == cells
        assert content(sources[0]) == b"sub/c.jpeg"
        assert content(sources[1]) == b"a.PNG"
        assert content(sources[4]) == b"b.png"
        assert isinstance(error_of(sources[3]), OpenFailed)
    assert count_sources([str(tree / "list.csv")]) == 5


def test_a_text_lists_files_relative_to_it(tree: Path) -> None:
    odd = os.fsencode(tree) + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_text("odd")
    (tree / "list.txt").write_bytes(b"\xef\xbb\xbfsub/c.jpeg\r\n\n" + odd + b"\nb.png")
    sources = list(find_sources([], [str(tree / "list.txt")]))
    assert [os.fsencode(source.filename) for source in sources] == [b"sub/c.jpeg", odd, b"b.png"]
    assert [content(source) for source in sources] == [b"sub/c.jpeg", b"odd", b"b.png"]


def test_a_pipe_lists_files_relative_to_the_current_folder(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `--filepaths <(find photos)`."""
    monkeypatch.chdir(tree)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("b.png\n",))
    writer.start()
    (source,) = find_sources([], [str(pipe)])
    writer.join()
    assert content(source) == b"b.png"


@pytest.mark.parametrize("data", ["b.png\n".encode("utf-16"), b"b.png\0a.png\0", b"PAR1\0\x15\n"])
def test_a_list_that_is_no_text_is_refused(data: bytes, tree: Path) -> None:
    (tree / "list.txt").write_bytes(data)
    with pytest.raises(DataError, match=r"list\.txt: not a text with a path a line.*UTF-8"):
        find_sources([], [str(tree / "list.txt")])


def test_inputs_and_lists_come_in_the_order_given(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    (tree / "list.txt").write_text("b.png\n")
    stdin = type("Stdin", (), {"buffer": io.BytesIO(b"sub/c.jpeg\n./b.png\n")})
    monkeypatch.setattr(sys, "stdin", stdin)
    found = names("a.PNG", "sub", lists=["-", "list.txt"])
    assert found == ["a.PNG", "sub/c.jpeg", "sub/deep/d.webp", "sub/c.jpeg", "./b.png", "b.png"]
    assert count_sources(["a.PNG", "sub"], ["list.txt"]) == 4


def test_folders_may_be_nested_deeper_than_calls(
    png: Png, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "d/" * 300 + "a.png"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(png(0))
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert names("d") == [name.removeprefix("d/")]
        assert names("**/*.png") == [name]
        assert [file.as_posix() for file in image_files(Path("d"))] == [name]
    finally:
        sys.setrecursionlimit(limit)


@pytest.fixture
def remote(png: Png) -> fsspec.AbstractFileSystem:
    """A file system in memory with a folder of images in it."""
    system = fsspec.filesystem("memory")
    system.rm("/bucket", recursive=True) if system.exists("/bucket") else None
    for name in ("b.png", "a.png", "sub/c.jpg", ".hidden.png", ".h/d.png", "notes.txt"):
        system.pipe_file(f"/bucket/{name}", png(len(name)))
    return system


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://bucket", ["a.png", "b.png", "sub/c.jpg"]),
        ("memory://bucket/b.png", ["b.png"]),
        ("memory://bucket/*.png", ["a.png", "b.png"]),
        ("memory://bucket/**/*.jpg", ["sub/c.jpg"]),
    ],
)
def test_urls(url: str, expected: list[str], remote: fsspec.AbstractFileSystem) -> None:
    sources = [pickle.loads(pickle.dumps(source)) for source in find_sources([url])]
    found = [source.filename.rpartition("bucket/")[2] for source in sources]
    assert found == expected
    for source in sources:
        assert content(source) == remote.cat_file(source.filename)
    assert count_sources([url]) is None


def test_a_zip_behind_a_url(png: Png, remote: fsspec.AbstractFileSystem) -> None:
    """A chain of file systems, as fsspec writes it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("b.png", "sub/a.png", "sub/notes.txt"):
            archive.writestr(name, png(len(name)))
    remote.pipe_file("/bucket/packed.zip", packed.getvalue())
    chain = "::memory://bucket/packed.zip"
    for url, members in {
        f"zip://{chain}": ["b.png", "sub/a.png"],
        f"zip://sub{chain}": ["sub/a.png"],
        f"zip://*.png{chain}": ["b.png"],
        f"zip://b.png{chain}": ["b.png"],
    }.items():
        sources = [pickle.loads(pickle.dumps(source)) for source in find_sources([url])]
        assert [source.filename for source in sources] == [f"zip://{n}{chain}" for n in members]
        assert [content(source) for source in sources] == [png(len(name)) for name in members]


@pytest.mark.parametrize(
    ("url", "path", "other", "expected"),
    [
        ("ftp://me@host/photos", "/photos", "/photos/a.png", "ftp://me@host/photos/a.png"),
        ("s3://bucket/dir/", "bucket/dir", "bucket/dir/a.png", "s3://bucket/dir/a.png"),
        ("https://host/d/", "https://host/d/", "https://host/d/a.png", "https://host/d/a.png"),
        ("github://o:r@main/x", "x", "x/a.png", "github://o:r@main/x/a.png"),
    ],
)
def test_a_url_keeps_its_host(url: str, path: str, other: str, expected: str) -> None:
    assert _address(url, None, path)(other) == expected


def test_no_more_of_a_remote_file_is_read_than_an_image_may_have(
    png: Png, remote: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "MAX_BYTES", 100)
    remote.pipe_file("/bucket/vast.png", bytes(10_000))
    (source,) = find_sources(["memory://bucket/vast.png"])
    assert len(content(source)) == 101


def test_a_tar_behind_a_url(tmp_path: Path, remote: fsspec.AbstractFileSystem) -> None:
    members = {f"{n}.png": os.urandom(3000) for n in range(3)}
    for suffix in (".tar", ".tar.gz"):
        shard = write_tar(tmp_path / f"shard{suffix}", members)
        remote.pipe_file(f"/bucket/shard{suffix}", shard.read_bytes())
        sources = list(find_sources([f"memory://bucket/shard{suffix}"]))
        assert [s.filename.rpartition("/")[2] for s in sources] == list(members)
        assert [content(source) for source in sources] == list(members.values())
    remote.pipe_file("/bucket/shard.tar", b"")
    (source,) = find_sources(["memory://bucket/shard.tar"])
    assert isinstance(error_of(source), OpenFailed)


def test_a_url_in_a_list_that_is_gone_has_a_row(
    tmp_path: Path, remote: fsspec.AbstractFileSystem
) -> None:
    (tmp_path / "list.txt").write_text("memory://bucket/gone.png\nmemory://bucket/a.png\n")
    gone, there = find_sources([], [str(tmp_path / "list.txt")])
    assert isinstance(error_of(gone), OpenFailed)
    assert content(there) == remote.cat_file("/bucket/a.png")


@pytest.mark.parametrize(
    ("item", "fragment"),
    [
        ("nowhere", "there is no such file, folder or match"),
        ("*.nothing", "there is no such file, folder or match"),
        ("empty", "no images in empty"),
        ("bad.csv", "no column of paths.*, and is 'a;b'"),
        ("memory://nowhere", "there is no such file"),
        ("nosuch://bucket/a.png", "nosuch"),
    ],
)
def test_an_input_that_is_not_there_is_one_line(
    item: str, fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.csv").write_text("a;b\n1;2\n")
    with pytest.raises((UsageError, DataError), match=fragment) as caught:
        find_sources([item])
    assert "\n" not in str(caught.value)


def test_fsspec_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"pip install 'deitlt\[remote\]'"):
        find_sources(["s3://bucket/a.png"])


def test_the_program_reads_a_tar_a_list_and_a_url(
    tmp_path: Path, png: Png, classifier: Classifier, remote: fsspec.AbstractFileSystem
) -> None:
    shard = write_tar(tmp_path / "shard.tar", {"0.png": png(0), "1.png": png(1)[:-60]})
    (tmp_path / "2.png").write_bytes(png(2))
    (tmp_path / "list.csv").write_text("image_path\n2.png\n3.png\n")
    url = "memory://bucket/a.png"
    arguments = [shard, url, "--filepaths", tmp_path / "list.csv"]
    assert predict(*arguments, "--output", tmp_path / "rows.csv") == 3
    found = [
        (row["filename"], row["label"], row["error"]) for row in read_rows(tmp_path / "rows.csv")
    ]
    images: list[ImageLike] = [png(0), remote.cat_file("/bucket/a.png"), png(2)]
    labels = [prediction.label for prediction in classifier.predict(images)]
    assert found == [
        (f"{shard}/0.png", labels[0], ""),
        (f"{shard}/1.png", "", "decode_failed"),
        (url, labels[1], ""),
        ("2.png", labels[2], ""),
        ("3.png", "", "open_failed"),
    ]
