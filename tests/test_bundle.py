"""The bundle on disk: anything missing or changed is refused by name, and writes are whole."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deitlt.bundle import (
    GOLDEN,
    MANIFEST,
    MODEL,
    OUTPUTS,
    default_bundle,
    open_bundle,
    write_bundle,
)
from deitlt.cli import main
from deitlt.errors import BundleError, UsageError
from deitlt.golden import check_golden
from tests.bundle_support import DIGITS, FILES, copy_of


def refusal(path: Path) -> str:
    """The text with which a bundle is refused; one line, always."""
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(path: Path, position: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("path", "classes", "img_size"),
    [
        (DIGITS, [str(digit) for digit in range(10)], 16),
        (
            default_bundle(),
            [
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ],
            32,
        ),
    ],
)
def test_a_trained_bundle_opens(path: Path, classes: list[str], img_size: int) -> None:
    bundle = open_bundle(path)
    assert bundle.classes == classes
    assert len(bundle.train_counts) == 10
    assert bundle.preprocess.img_size == img_size
    assert bundle.version == bundle.manifest["sha256"][:12]
    assert bundle.groups()["tail"] == [7, 8, 9]
    assert bundle.manifest["groups"] == bundle.groups()
    assert sorted(bundle.manifest["files"]) == FILES
    assert sorted(f.name for f in bundle.path.iterdir()) == sorted([*FILES, MANIFEST])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_changed_byte_is_refused_by_name(name: str, where: float, bundle_path: Path) -> None:
    file = bundle_path / name
    flip(file, int(where * file.stat().st_size))
    assert f"{name}: changed" in refusal(bundle_path)


@pytest.mark.parametrize("name", FILES)
def test_a_shorter_or_longer_file_is_refused(name: str, bundle_path: Path) -> None:
    file = bundle_path / name
    data = file.read_bytes()
    for changed in (data[:-1], data + b"\n", b""):
        file.write_bytes(changed)
        assert name in refusal(bundle_path)


def test_no_byte_of_the_manifest_may_change(bundle_path: Path) -> None:
    file = bundle_path / MANIFEST
    original = file.read_bytes()
    for position, byte in enumerate(original):
        # White space becomes other white space: the JSON stays valid and means the same.
        changed = 0x09 if byte in b" \n" else byte ^ (1 << position % 7)
        file.write_bytes(original[:position] + bytes([changed]) + original[position + 1 :])
        assert MANIFEST in refusal(bundle_path)
    for changed_file in (original[:-1], original + b"\n", b"\xef\xbb\xbf" + original):
        file.write_bytes(changed_file)
        assert MANIFEST in refusal(bundle_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"{}", b"\xff\xfe", b"[" * 20])
def test_what_is_no_manifest(content: bytes, bundle_path: Path) -> None:
    (bundle_path / MANIFEST).write_bytes(content)
    assert "damaged" in refusal(bundle_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, bundle_path: Path) -> None:
    (bundle_path / name).unlink()
    assert f"{name}: missing" in refusal(bundle_path)


@pytest.mark.parametrize("name", [MANIFEST, MODEL])
def test_a_file_that_may_not_be_read_is_named(
    name: str, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = io.open

    def refuse(file: object, *args: Any, **kwargs: Any) -> Any:  # the tests may run as root
        if file == bundle_path / name:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return really_open(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle_path)
    assert str(caught.value) == f"{bundle_path / name}: cannot be read (Permission denied)"


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert MANIFEST in refusal(path)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_schema_version_says_both(version: object, bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / MANIFEST).read_text(encoding="utf-8"))
    (bundle_path / MANIFEST).write_text(json.dumps({**manifest, "schema_version": version}))
    text = refusal(bundle_path)
    assert f"schema version {version}" in text
    assert "reads 2" in text


def test_written_and_read_again(bundle_path: Path, tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "new" / "copy", copy_of(bundle_path))
    assert written == open_bundle(tmp_path / "new" / "copy")
    assert written.version == open_bundle(bundle_path).version, "same content, same version"
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["copy"]


def test_another_content_is_another_version(bundle_path: Path, tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        fields = copy_of(bundle_path)(folder)
        (folder / "README.md").write_text("another card")
        return fields

    written = write_bundle(tmp_path / "copy", fill)
    assert written.version != open_bundle(bundle_path).version


@pytest.mark.parametrize(
    "forged", [{"img_size": 0}, {"std": [1, 0, 1]}, {"mean": [0, float("nan"), 0]}]
)
def test_a_forged_preprocessing_is_one_line(
    forged: dict[str, Any], bundle_path: Path, tmp_path: Path
) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        manifest = copy_of(bundle_path)(folder)
        return {**manifest, "preprocess": {**manifest["preprocess"], **forged}}

    with pytest.raises(BundleError, match="damaged, no image can be prepared by it"):
        write_bundle(tmp_path / "forged", fill)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_write_leaves_no_trace(
    error: type[BaseException], overwrite: bool, bundle_path: Path, tmp_path: Path
) -> None:
    target = bundle_path if overwrite else tmp_path / "new"
    before = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    version = open_bundle(bundle_path).version

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "half").touch()
        raise error

    with pytest.raises(error):
        write_bundle(target, fill, overwrite=overwrite)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == before
    assert open_bundle(bundle_path).version == version


def test_overwrite_replaces_a_whole_bundle(bundle_path: Path, tmp_path: Path) -> None:
    (bundle_path / "left over").touch()
    write_bundle(bundle_path, copy_of(DIGITS), overwrite=True)
    assert sorted(f.name for f in bundle_path.iterdir()) == sorted([*FILES, MANIFEST])
    assert [f.name for f in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_folder_may_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", copy_of(DIGITS)).classes
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_bundle(".", copy_of(DIGITS))
    assert open_bundle(tmp_path / "here").classes


@pytest.mark.parametrize("taken", ["bundle", "file", "other files", "mount"])
def test_a_taken_place_is_refused_before_any_work(
    taken: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / taken
    if taken == "mount":  # a bundle that may be replaced, were it not for its place
        target = bundle_path
        monkeypatch.setattr("os.path.ismount", target.__eq__)
    if taken == "file":
        target.touch()
    elif taken == "other files":
        target.mkdir()
        (target / "thesis.tex").touch()

    def fill(_: Path) -> dict[str, Any]:
        raise AssertionError("worked for nothing")

    with pytest.raises((BundleError, UsageError), match=r"bundle|folder") as caught:
        write_bundle(target, fill, overwrite=taken != "bundle")
    assert "\n" not in str(caught.value)


def test_inspect_says_what_is_inside(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle_path)]) == 0
    text = capsys.readouterr().out
    assert open_bundle(bundle_path).version in text
    assert "10 classes" in text
    for name in FILES:
        assert f"  {name} " in text
    assert "golden" not in text.splitlines()[-1]


def test_inspect_verifies_the_packaged_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--verify"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("float32: 8 golden images")


def test_inspect_refuses_in_one_line(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(bundle_path / "model.onnx", 1000)
    assert main(["inspect", str(bundle_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "model.onnx: changed" in captured.err
    for option in ("--variant=int8", "--device=auto"):
        assert main(["inspect", option]) == 2
        assert "add --verify" in capsys.readouterr().err


def test_output_that_cannot_be_written_leaves_no_traceback(bundle_path: Path) -> None:
    named = bundle_path.rename(bundle_path.with_name("数字"))

    def inspect(output: object, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "deitlt.cli", "inspect", str(named)],
            stdout=output,  # type: ignore[call-overload]
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
            check=False,
        )
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        assert inspect(pipe) == (141, "")
    with (bundle_path.parent / "said").open("w+") as said:
        assert inspect(said, PYTHONIOENCODING="ascii") == (0, "")
        said.seek(0)
        assert r"\u6570\u5b57" in said.readline()
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            assert inspect(full) == (2, "deitlt: output: No space left on device\n")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("offset", [0.01, -0.01, float("nan")])
def test_golden_images_that_differ_are_refused(
    output: str, offset: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        fields = copy_of(DIGITS)(folder)
        with np.load(folder / GOLDEN) as stored:
            arrays = dict(stored)
        arrays[output][-1, -1] += offset
        np.savez_compressed(folder / GOLDEN, **arrays)
        return fields

    bundle = write_bundle(tmp_path / "wrong", fill)
    with pytest.raises(BundleError, match="golden images differ"):
        check_golden(bundle)
    assert main(["inspect", str(tmp_path / "wrong"), "--verify"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
