"""Servers of images that fail or hold too much: said in one line or one row, never passed over."""

from pathlib import Path
from typing import ClassVar

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
