"""Reading a file while its server is away for a moment; test_sources.py lists folders."""

import errno
import os
from pathlib import Path

import pytest

from deitlt import image_files
from deitlt.errors import OpenFailed
from deitlt.image_files import read_image_file


class Away:
    """`os.open` of a file system that fails some times."""

    def __init__(self, code: int, failures: int) -> None:
        self.code = code
        self.failures = failures
        self.calls = 0
        self._open = os.open

    def __call__(self, path: str, flags: int) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(self.code, os.strerror(self.code), path)
        return self._open(path, flags)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(image_files, "WAITS_S", (0.0, 0.0))
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_passing_error_is_outlasted(
    code: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(code, failures=2)
    monkeypatch.setattr("os.open", away)
    assert read_image_file(file) == b"content"
    assert away.calls == 3


@pytest.mark.parametrize(("code", "tries"), [(errno.EIO, 3), (errno.EACCES, 1), (errno.ENOENT, 1)])
def test_an_error_that_stays_is_told(
    code: int, tries: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(code, failures=9)
    monkeypatch.setattr("os.open", away)
    with pytest.raises(OpenFailed) as told:
        read_image_file(file)
    assert str(told.value) == f"{file}: cannot be read ({os.strerror(code)})"
    assert away.calls == tries
