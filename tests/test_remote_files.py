"""Servers of images that fail or hold too much: said in one line or one row, never passed over."""

import errno
import os
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from deitlt.batch import remote_files
from deitlt.batch.sources import find_sources
from deitlt.errors import ImageTooLarge, UsageError
from tests.predict_support import error_of, names, write_tar


class Web(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A web server whose pages link to each other; some are gone."""

    protocol = ("http", "https")
    cachable = False
    pages: ClassVar[dict[str, list[str]]] = {
        "http://h/d/": ["b.png", "sub/", "./", ".git/", "dead/"],
        "http://h/d/sub/": ["a.png", "notes.txt"],
    }
    lost = ""

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, str]]:
        if path == self.lost:
            raise OSError("cannot connect to host h")
        if path not in self.pages:
            raise FileNotFoundError(path)
        kinds = {True: "directory", False: "file"}
        return [
            {"name": path + link, "type": kinds[link.endswith("/")]} for link in self.pages[path]
        ]


def test_a_web_folder_that_cannot_be_listed_whole_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_files, "_open", lambda url: (Web(), url))
    assert names("http://h/d/") == ["http://h/d/b.png", "http://h/d/sub/a.png"]
    for lost in Web.pages:
        monkeypatch.setattr(Web, "lost", lost)
        with pytest.raises(UsageError, match=r"cannot be listed \(cannot connect to host h\)"):
            names("http://h/d/")


class Server(Web):
    """A file server of a kind that has no listing of its own of all files under a folder."""

    protocol = ("sftp", "ssh")
    pages: ClassVar[dict[str, list[str]]] = {
        "/d": ["/b.png", "/sub/", "/.git/", "/"],
        "/d/sub/": ["a.png", "notes.txt"],
    }

    def isdir(self, path: str) -> bool:
        return path in self.pages


def test_a_folder_on_a_server_that_cannot_be_listed_whole_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_files, "_open", lambda url: (Server(), "/d"))
    assert names("sftp://h/d") == ["sftp://h/d/b.png", "sftp://h/d/sub/a.png"]
    for lost in Server.pages:
        monkeypatch.setattr(Server, "lost", lost)
        with pytest.raises(UsageError, match=r"cannot be listed \(cannot connect to host h\)"):
            names("sftp://h/d")


def test_a_file_url_is_walked_as_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/a.png", "photos/.hidden/b.png", "elsewhere/c.png", "photos/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "ring").symlink_to(tmp_path / "photos")
    url = (tmp_path / "photos").as_uri()
    assert names(url) == [f"{url}/a.png", f"{url}/linked/c.png"]
    scandir = os.scandir

    def failing(path: str) -> Any:
        if str(path).endswith("linked"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", failing)
    with pytest.raises(UsageError, match=r"cannot be listed .*Permission denied"):
        names(url)


def test_a_vast_member_of_a_tar_behind_a_url_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_tar(tmp_path / "shard.tar", {"vast.png": bytes(3000)})
    system = fsspec.filesystem("memory")
    system.pipe_file("/vast/shard.tar", shard.read_bytes())
    (source,) = find_sources(["memory://vast/shard.tar"])
    monkeypatch.setattr(remote_files, "MAX_BYTES", 100)
    monkeypatch.setattr(type(system), "cat_file", lambda *_, **__: pytest.fail("it was fetched"))
    assert isinstance(error_of(source), ImageTooLarge)
