"""Every form of the model in a bundle: used, verified, and refused where it is not what it was."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deitlt import cli
from deitlt.bundle import MANIFEST, Bundle, open_bundle, write_bundle
from deitlt.classifier import load
from deitlt.errors import BundleError, RuntimeUnavailable, UsageError
from deitlt.golden import check_golden
from deitlt.preprocess import PreprocessSpec, resize_crop
from deitlt.runtimes import OnnxRuntime, open_runtime
from deitlt.student import StudentConfig
from export.fuse import FusedStudent
from export.parity import FusedRuntime
from export.to_onnx import export_onnx
from export.variants import OPTIONAL, VARIANTS
from tests.checkout_support import BLOCKER, ROOT
from tests.export_support import (
    export,
    fit_heads,
    fitted_student,
    noise_student,
    photo_tiles,
    pixels_of,
    save_student,
)

ALONE = """
import io, json, sys
import numpy as np, onnxruntime
from PIL import Image
assert not {"torch", "deitlt"} & set(sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
known = session.get_modelmeta().custom_metadata_map
facts = {key: json.loads(known[key]) for key in ("classes", "preprocess")}
spec = facts["preprocess"]
image = Image.open(sys.argv[2]).convert("RGB")
side = spec["img_size"]
short = int(side / spec["crop_pct"])
w, h = image.size
size = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
image = image.resize(size, getattr(Image.Resampling, spec["interpolation"].upper()))
left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
pixels = np.asarray(image.crop((left, top, left + side, top + side)))[None]
(name,) = [i.name for i in session.get_inputs()]
outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {name: pixels})))
best = facts["classes"][outputs["logits"][0].argmax()]
print(json.dumps({"best": best, **{k: v[0].tolist() for k, v in outputs.items()}}))
"""


def run(bundle: Path, *arguments: str) -> int:
    return cli.main(["inspect", str(bundle), *arguments])


def rewritten(source: Path, target: Path, change: Callable[[Path, dict[str, Any]], None]) -> Bundle:
    """A copy of a bundle with something changed in it and all hashes right."""

    def fill(folder: Path) -> dict[str, Any]:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        (folder / MANIFEST).unlink()
        change(folder, manifest)
        kept = {"schema_version", "files", "sha256"}
        return {key: value for key, value in manifest.items() if key not in kept}

    return write_bundle(target, fill)


def test_a_bundle_with_everything(whole_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(whole_bundle)
    assert bundle.variants == ["float32", *OPTIONAL]
    assert bundle.manifest["refused"] == {}
    assert (bundle.recipe["name"], bundle.train_files_sha256) == ("test", "paths+sizes:0")
    assert run(whole_bundle, "--verify") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-len(bundle.variants) :]] == bundle.variants
    for variant, entry in bundle.manifest["artefacts"].items():
        assert entry["accuracy"]["overall"] > 0.9, variant
        reduced = entry["precision"] != "float32"
        assert (entry["gate"] is not None) == reduced
        assert reduced or entry["parity"]["max_abs_diff"] < 1e-4
        assert entry["parity"]["num_images"] == 440
        card = (whole_bundle / "README.md").read_text(encoding="utf-8")
        assert entry["file"] in card or variant == "triton"
        if entry["format"] == "onnx":
            graph = onnx.load(str(whole_bundle / entry["file"]))
            assert entry["ir_version"] == graph.ir_version
            opset = 20 if variant in ("fp16", "explain") else 23
            assert (
                entry["opset"] == {"ai.onnx": graph.opset_import[0].version} == {"ai.onnx": opset}
            )


def test_the_card_has_a_line_for_each_class(whole_bundle: Path) -> None:
    bundle = open_bundle(whole_bundle)
    card = (whole_bundle / "README.md").read_text(encoding="utf-8")
    block = card.partition("## Training images a class\n```\n")[2].removesuffix("\n```\n")
    rows = [line.split(maxsplit=1) for line in block.splitlines()]
    counts = [int(count) for count, _ in rows]
    assert counts == sorted(bundle.train_counts, reverse=True)
    assert dict(zip(bundle.classes, bundle.train_counts, strict=True)) == {
        name: int(count) for count, name in rows
    }


@pytest.mark.parametrize("variant", ["float32", *OPTIONAL])
def test_every_form_gives_the_same_labels(whole_bundle: Path, digits: Path, variant: str) -> None:
    images = sorted((digits / "test").rglob("*.png"))[::20]
    wanted = [p.label for p in load(whole_bundle, device="cpu").predict(images)]
    actual = load(whole_bundle, variant=variant, device="cpu")
    assert [p.label for p in actual.predict(images)] == wanted
    if variant == "average":
        with pytest.raises(UsageError, match="gives the average alone"):
            actual.predict(images, experts=True)
        with pytest.raises(UsageError, match="gives the average alone"):
            actual.predict(images, blend=0.3)
    else:
        assert actual.predict(images, experts=True)[0].experts is not None


def test_precisions_are_really_different(whole_bundle: Path) -> None:
    bundle = open_bundle(whole_bundle)
    with np.load(whole_bundle / "golden.npz") as golden:
        pixels, wanted = golden["pixels"], golden["logits"]
    off = {
        variant: float(np.abs(open_runtime(bundle, variant).run(pixels).logits - wanted).max())
        for variant in ("float32", "fp16", "int8")
    }
    assert off["float32"] < 1e-5 < off["fp16"] < off["int8"] < 1
    sizes = {v: bundle.artefact(v).path.stat().st_size for v in ("float32", "fp16", "int8")}
    assert sizes["fp16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < 0.4 * sizes["float32"]


@torch.no_grad()
def test_products_of_float16_are_rounded_once() -> None:
    """Each is the float32 product of the same float16 numbers; what follows is float16."""
    model = noise_student(StudentConfig(size="pico", img_size=16, patch_size=4, num_classes=10))
    fused = FusedStudent(model, PreprocessSpec(16), dtype=torch.float16)
    seen = []

    def noted(module: nn.Linear, given: tuple[Tensor, ...], result: Tensor) -> None:
        wanted = F.linear(given[0].float(), module.weight.float(), module.bias.float()).half()
        seen.append(torch.equal(result, wanted))

    for module in fused.blocks.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(noted)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    logits = FusedRuntime(fused).run(pixels).logits
    assert len(seen) == 6 * len(fused.blocks)
    assert all(seen)
    exact = FusedStudent(model, PreprocessSpec(16))(torch.from_numpy(pixels))[0].numpy()
    assert 0 < np.abs(logits - exact).max() < 0.02 * np.abs(exact).max()


@torch.no_grad()
def test_fp16_that_overflows_is_refused_though_onnxruntime_computes_it_in_float32(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, card = fitted_student(digits)
    for block in model.blocks:
        # A hidden unit beyond 65504, float16's largest number; the weight after it undoes that.
        block.mlp.fc1.weight[0] *= 6e4
        block.mlp.fc2.weight[:, 0] /= 6e4
    fit_heads(model, digits, card.preprocess)
    half = FusedStudent(model, card.preprocess, dtype=torch.float16)
    export_onnx(half, card, tmp_path / "half.onnx")
    pixels, _ = pixels_of(digits, "test", card.preprocess)
    assert np.isfinite(OnnxRuntime(tmp_path / "half.onnx", device="cpu").run(pixels).logits).all()
    run_folder = save_student(tmp_path / "run", model, card)
    assert export(run_folder, tmp_path / "bundle", digits, "--variants", "fp16") == 3
    error = capsys.readouterr().err
    assert error == (
        "export: fp16 was not written: fp16: 440 of 440 images give NaN or infinite logits\n"
    )
    assert open_bundle(tmp_path / "bundle").variants == ["float32"]


def test_batch_prediction_with_int8(whole_bundle: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, tile in enumerate(photo_tiles(5)):
        tile.save(photos / f"{number}.png")
    output = tmp_path / "out.csv"
    where = ["--model", str(whole_bundle), "--output", str(output), "--device", "cpu"]
    assert cli.main(["predict", str(photos), *where, "--variant", "int8"]) == 0
    with output.open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    images: list[Any] = sorted(photos.iterdir())
    int8 = load(whole_bundle, variant="int8", device="cpu", num_threads=1)
    assert labels == [p.label for p in int8.predict(images)]


def test_an_unknown_variant_names_those_there_are(
    whole_bundle: Path, bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match="no variant 'int4', only float32, fp16, int8"):
        load(whole_bundle, variant="int4")
    assert run(bundle_path, "--verify", "--variant", "int8") == 2
    error = capsys.readouterr().err
    assert "has no variant 'int8', only float32; export it with --variants int8" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("variant", [*OPTIONAL])
def test_a_damaged_artefact_is_refused_by_name(
    whole_bundle: Path, tmp_path: Path, variant: str
) -> None:
    copy = shutil.copytree(whole_bundle, tmp_path / "copy")
    file = open_bundle(copy).artefact(variant).path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{file.name}: changed since it was written"):
        open_bundle(copy)


@pytest.mark.parametrize("variant", ["float32", "fp16", "int8", "average", "triton"])
def test_verify_finds_another_graph_though_hashes_are_right(
    whole_bundle: Path, tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def swap(folder: Path, manifest: dict[str, Any]) -> None:
        file = folder / manifest["artefacts"][variant]["file"]
        graph = onnx.load(str(file))
        (bias,) = (t for t in graph.graph.initializer if t.name == "average.bias")
        array = onnx.numpy_helper.to_array(bias) + 5
        bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
        onnx.save(graph, str(file))

    bundle = rewritten(whole_bundle, tmp_path / "wrong", swap)
    with pytest.raises(BundleError, match="golden images differ from torch by 5"):
        check_golden(bundle, variant)
    assert run(bundle.path, "--verify") == 2
    assert bundle.artefact(variant).path.name in capsys.readouterr().err


def test_a_torch_file_of_another_kind_is_one_line(whole_bundle: Path, tmp_path: Path) -> None:
    for variant in ("torchscript", "pt2"):

        def spoil(folder: Path, manifest: dict[str, Any], variant: str = variant) -> None:
            (folder / manifest["artefacts"][variant]["file"]).write_bytes(b"PK no archive")

        bundle = rewritten(whole_bundle, tmp_path / variant, spoil)
        with pytest.raises(RuntimeUnavailable, match="PyTorch cannot load it") as caught:
            check_golden(bundle, variant)
        assert "\n" not in str(caught.value)


def test_without_torch_its_artefacts_are_named_as_not_checked(whole_bundle: Path) -> None:
    blocker = BLOCKER.format(heavy=("torch",), modules=["deitlt"])
    script = f"{blocker}\nfrom deitlt.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "inspect", str(whole_bundle), "--verify"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    lines = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["torchscript", "pt2"]
    assert all("not checked" in line and "PyTorch is not installed" in line for line in lines)
    one = subprocess.run([*command, "--variant", "pt2"], cwd=ROOT, capture_output=True, timeout=60)
    assert one.returncode == 2


def test_the_graph_alone_is_enough(whole_bundle: Path, tmp_path: Path) -> None:
    """A reader with onnxruntime, NumPy and Pillow gets the library's answer from the metadata."""
    tile = photo_tiles(1)[0]
    tile.save(tmp_path / "tile.png")
    script = BLOCKER.format(heavy=("torch", "deitlt"), modules=[]) + ALONE
    command = [sys.executable, "-c", script, str(whole_bundle / "model.onnx")]
    result = subprocess.run(
        [*command, str(tmp_path / "tile.png")], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    classifier = load(whole_bundle, device="cpu")
    assert answer["best"] == classifier.predict([tile])[0].label
    outputs = classifier.runtime.run(resize_crop(tile, classifier.bundle.preprocess)[None]).heads()
    for name, logits in outputs.items():
        assert np.abs(np.array(answer[name]) - logits[0]).max() < 1e-5


def test_what_the_option_takes_is_what_there_is() -> None:
    assert set(OPTIONAL) == {*VARIANTS, "triton"} - {"float32"}
