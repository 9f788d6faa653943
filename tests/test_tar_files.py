"""Tar archives as inputs of `deitlt predict`: whole, compressed, damaged, with links."""

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from deitlt.batch.sources import find_sources
from deitlt.errors import ImageTooLarge, OpenFailed
from tests.predict_support import COMPRESSIONS, content, error_of, names, write_tar

Png = Callable[[int], bytes]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_tar_in_its_own_order(suffix: str, tmp_path: Path, png: Png) -> None:
    members = {f"b/{n}.png": png(n) for n in (3, 1)} | {"a.jpg": b"a", "a.json": b"{}"}
    members |= {"a/.b.png": b"", "._c.png": b"", os.fsdecode(b"caf\xe9.png"): b"odd"}
    shard = write_tar(tmp_path / f"shard{suffix}", members)
    sources = [pickle.loads(pickle.dumps(s)) for s in find_sources([str(shard)])]
    wanted = ["b/3.png", "b/1.png", "a.jpg", os.fsdecode(b"caf\xe9.png")]
    assert [source.filename for source in sources] == [f"{shard}/{name}" for name in wanted]
    assert [content(source) for source in sources] == [members[name] for name in wanted]
    assert names(f"{tmp_path}/*{suffix}") == [f"{shard}/{name}" for name in wanted]


def test_a_plain_tar_is_not_read_for_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_tar(tmp_path / "shard.tar", {f"{n}.png": bytes(50_000) for n in range(40)})
    read = 0
    real_open = Path.open

    class Counted(io.FileIO):
        def readinto(self, buffer: object) -> int:
            nonlocal read
            count: int = super().readinto(buffer)  # type: ignore[arg-type]
            read += count
            return count

    def counted(path: Path, mode: str) -> object:
        return io.BufferedReader(Counted(path), 1024) if path == shard else real_open(path, mode)

    monkeypatch.setattr(Path, "open", counted)
    assert len(names(shard)) == 40
    assert 40 * 512 <= read < 100_000


def test_links_in_a_tar_have_rows_that_say_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, kind in (("hard.png", tarfile.LNKTYPE), ("soft.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.png"
            archive.addfile(link)
    for source in find_sources([str(tmp_path / "shard.tar")]):
        assert "is a link" in str(error_of(source))


def test_a_large_member_of_a_compressed_tar_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deitlt.batch.tar_files.MAX_BYTES", 10)
    members = {"small.png": bytes(10), "large.png": bytes(11)}
    small, large = find_sources([str(write_tar(tmp_path / "s.tar.gz", members))])
    assert content(small) == bytes(10)
    assert isinstance(error_of(large), ImageTooLarge)
    small, large = find_sources([str(write_tar(tmp_path / "s.tar", members))])
    assert content(small) == bytes(10)
    assert isinstance(error_of(large), ImageTooLarge)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_damaged_tar_has_a_row_and_the_run_goes_on(suffix: str, tmp_path: Path) -> None:
    images = {f"{n}.png": os.urandom(3000) for n in range(4)}
    whole = write_tar(tmp_path / f"whole{suffix}", images).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in (0, 100, len(whole) // 2):
        cut.write_bytes(whole[:length])
        found = list(find_sources([str(cut), str(tmp_path / f"whole{suffix}")]))
        bad, good = found[:-4], found[-4:]
        assert [content(source) for source in good] == list(images.values())
        assert bad[-1].filename == str(cut)
        assert isinstance(error_of(bad[-1]), OpenFailed)
        assert len(bad) == 1 or length > 1000


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "shard.tar", {f"{n}.png": bytes(512) for n in range(3)})
    data = bytearray(shard.read_bytes())
    data[1024 + 148] ^= 1  # the check sum of the second header
    shard.write_bytes(data)
    first, rest = find_sources([str(shard)])
    assert content(first) == bytes(512)
    assert "damaged" in str(error_of(rest))
    assert rest.filename == str(shard)


def packed(name: str, size: int = 0, pax: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """An archive of one member with a header that may lie."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = size, dict(pax)
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    "lie",
    [
        packed("b.png", -512),  # leads back to its own header, again and again
        packed("b.png", pax={"size": "9" * 26}),
        packed("b.png", pax={"GNU.sparse.major": "0", "GNU.sparse.map": "a,b"}),
        packed("b.png", pax={"GNU.sparse.size": "x"}),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_header_that_lies_ends_the_archive_alone(lie: bytes, suffix: str, tmp_path: Path) -> None:
    shard = tmp_path / f"shard{suffix}"
    data = packed("a.png") + lie + bytes(1024)
    shard.write_bytes(gzip.compress(data) if suffix == ".tar.gz" else data)
    (tmp_path / "c.png").touch()
    first, bad, last = find_sources([str(shard), str(tmp_path / "c.png")])
    assert (first.filename, last.filename) == (f"{shard}/a.png", f"{tmp_path}/c.png")
    assert "cannot be read to its end" in str(error_of(bad))


def test_a_tar_that_shrinks_is_noticed(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "shard.tar", {"a.png": bytes(5000)})
    (source,) = find_sources([str(shard)])
    os.truncate(shard, 2000)
    assert "ends in the middle" in str(error_of(source))
    shard.unlink()
    assert isinstance(error_of(source), OpenFailed)
