"""The deployable bundle: a folder that carries all that inference needs.

```
bundle/
  bundle.json     what this is: classes, counts, groups, preprocessing, hashes, and of each
                  artefact its format, parity with torch and accuracy
  model.onnx      uint8 (B, H, W, 3) -> logits, cls_logits, distillation_logits, each (B, C), and
                  cls_features, distillation_features, each (B, D)
  golden.npz      a few real images with the logits torch gives for them
  metrics.json    accuracy per head and group;  per_class.csv  accuracy per class
  README.md       model card
```

Beside model.onnx, the artefact `float32`, there may be variants: model.fp16.onnx, model.int8.onnx
and others, see `export.variants`. A bundle exported with `--weights` also has the weights of the
run and its learning curves, student.safetensors and results.csv, for `training.analyze`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from deitlt.errors import BundleError
from deitlt.files import (
    file_sha256,
    json_text,
    new_folder,
    refuse_mount,
    restore_stranded,
    write_json,
)
from deitlt.longtail import Groups, all_groups
from deitlt.preprocess import PreprocessSpec

SCHEMA_VERSION = 2
MANIFEST = "bundle.json"
MODEL = "model.onnx"
GOLDEN = "golden.npz"
# As they are called in the run folder they come from; nothing that classifies reads them.
WEIGHTS, CURVES = "student.safetensors", "results.csv"
# Raw pixels go in; a graph that takes normalised ones names its input as Hugging Face does.
INPUT = "images"
NORMALISED_INPUT = "pixel_values"
OUTPUTS = ("logits", "cls_logits", "distillation_logits")
# What both heads read; bundles written before there were embeddings lack them.
FEATURES = ("cls_features", "distillation_features")
# Where both experts looked; of the variant `explain`.
ROLLOUTS = ("cls_rollout", "distillation_rollout")
# The artefact that every bundle has.
FLOAT32 = "float32"
# The one that gives rollouts.
EXPLAIN = "explain"


@dataclass(frozen=True, slots=True)
class Artefact:
    """One form of the model in a bundle.

    Attributes:
        variant: its name, such as float32 or int8.
        path: the file to load.
        format: what loads it: onnx, torchscript or pt2.
        precision: float32, float16 or int8.
        max_abs_diff: largest difference to torch of any logit, seen when it was exported.
    """

    variant: str
    path: Path
    format: str
    precision: str
    max_abs_diff: float


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Attributes:
        path: its folder.
        name: what the model is called in answers and logs.
        version: the first twelve digits of the manifest's hash: another content, another version.
        classes: class names, `C` of them.
        train_counts: training images of each class.
        preprocess: how an image becomes the model's input.
        manifest: the whole of bundle.json.
    """

    path: Path
    name: str
    version: str
    classes: list[str]
    train_counts: list[int]
    preprocess: PreprocessSpec
    manifest: dict[str, Any]

    @property
    def variants(self) -> list[str]:
        """Names of the artefacts, float32 first."""
        return list(self.manifest["artefacts"])

    def artefact(self, variant: str = FLOAT32) -> Artefact:
        """One form of the model.

        Raises:
            BundleError: the bundle has none of this name.
        """
        entry = self.manifest["artefacts"].get(variant)
        if entry is None:
            raise BundleError(
                f"{self.path}: has no variant {variant!r}, only {', '.join(self.variants)}; "
                f"export it with --variants {variant}"
            )
        return Artefact(
            variant,
            self.path / entry["file"],
            entry["format"],
            entry["precision"],
            entry["parity"]["max_abs_diff"],
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """How it was trained; empty where that is not known."""
        recipe: dict[str, Any] = self.manifest.get("recipe", {})
        return recipe

    @property
    def train_files_sha256(self) -> str:
        """Identity of what it was trained on; empty where that is not known."""
        return str(self.manifest.get("train_files_sha256", ""))

    @property
    def class_lines(self) -> str:
        """The class names in order, a line each, as Triton's labels file has them."""
        return "".join(f"{name}\n" for name in self.classes)

    @property
    def classes_sha256(self) -> str:
        """Stands for the classes and their order, for who must not mix up two models."""
        return sha256(self.class_lines.encode()).hexdigest()

    @property
    def num_patches(self) -> int:
        """Patches that the model cuts an image into."""
        architecture = self.manifest["architecture"]
        return int((architecture["img_size"] // architecture["patch_size"]) ** 2)

    def groups(self) -> Groups:
        """Class indices of head / mid / tail and many / medium / few."""
        return all_groups(self.train_counts)

    def with_fast_decode(self) -> "Bundle":
        """The same bundle, its images prepared faster and a little differently."""
        return replace(self, preprocess=replace(self.preprocess, fast_decode=True))

    def describe(self) -> str:
        """A few lines for people: what is inside and what it achieved."""
        lines = [
            f"{self.name} (version {self.version}) in {self.path}",
            f"  {len(self.classes)} classes, {min(self.train_counts)} to "
            f"{max(self.train_counts)} training images each; {self.preprocess.img_size} px input",
        ]
        for name, entry in self.manifest["files"].items():
            lines.append(f"  {name:<18} {entry['bytes']:>12,} bytes  sha256 {entry['sha256']}")
        for variant, entry in self.manifest["artefacts"].items():
            parity, accuracy = entry["parity"], entry["accuracy"]
            shares = [accuracy["overall"], *(accuracy[g] for g in ("head", "mid", "tail"))]
            figures = " / ".join("-" if s is None else f"{100 * s:.1f}" for s in shares)
            lines.append(
                f"  {variant:<12} {entry['file']}: overall / head / mid / tail {figures} %; "
                f"against torch on {parity['num_images']} images max |logit difference| "
                f"{parity['max_abs_diff']:.1e}, same top-1 {100 * parity['same_top1']:.1f} %"
            )
            if doubt := (entry.get("gate") or {}).get("doubt"):
                lines.append(f"  {'':<12} passed, not certified: {doubt}")
        for variant, reason in self.manifest["refused"].items():
            lines.append(f"  {variant:<12} refused at export: {reason}")
        return "\n".join(lines)


def default_bundle() -> Path:
    """The small trained bundle that comes with the package: CIFAR-10 at 32 px."""
    return Path(str(files("deitlt") / "bundles" / "cifar10"))


def open_bundle(path: str | Path) -> Bundle:
    """The bundle in a folder, every file checked against its hash.

    Raises:
        BundleError: missing, not to be read, damaged or changed since it was written; the text
            names the file.
    """
    try:
        return _checked(Path(path))
    except OSError as error:  # as where a container's user is not the one who may
        reason = error.strerror or error
        raise BundleError(f"{error.filename or path}: cannot be read ({reason})") from error


def _checked(root: Path) -> Bundle:
    manifest_path = root / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(f"{root}: not a bundle, there is no {MANIFEST} in it")
    try:
        text = manifest_path.read_bytes().decode()
        manifest = json.loads(text)
        stated_hash, version = manifest["sha256"], manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{manifest_path}: damaged, it is not a bundle manifest") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{manifest_path}: schema version {version}, this program reads {SCHEMA_VERSION}; "
            "export the bundle again or install the matching version"
        )
    # The hash is over the content; what is written the same way again has no other byte either.
    if _manifest_hash(manifest) != stated_hash or json_text(manifest) != text:
        raise BundleError(f"{manifest_path}: changed since it was written; export the bundle again")
    for name, entry in manifest["files"].items():
        file = root / name
        if not file.is_file():
            raise BundleError(f"{file}: missing from the bundle; copy or export it again")
        if file_sha256(file) != entry["sha256"]:
            raise BundleError(f"{file}: changed since it was written; export the bundle again")
    try:
        preprocess = PreprocessSpec.from_dict(manifest["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{manifest_path}: damaged, no image can be prepared by it") from error
    return Bundle(
        path=root,
        name=manifest["name"],
        version=stated_hash[:12],
        classes=manifest["classes"],
        train_counts=manifest["train_counts"],
        preprocess=preprocess,
        manifest=manifest,
    )


def write_bundle(
    path: str | Path, fill: Callable[[Path], dict[str, Any]], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle: complete under its name, or not there at all.

    Args:
        path: the folder to make; it must not exist, be empty, or be a bundle with `overwrite`.
        fill: writes every file but bundle.json into the folder it is given, and returns the fields
            of bundle.json but `schema_version`, `files` and `sha256`.
        overwrite: replace a bundle that stands there.

    Raises:
        BundleError: `path` is taken.
    """
    root = Path(path).resolve()
    check_free(root, overwrite=overwrite)
    with new_folder(root, overwrite=overwrite) as folder:
        manifest = fill(folder)
        entries = {
            file.relative_to(folder).as_posix(): {
                "sha256": file_sha256(file),
                "bytes": file.stat().st_size,
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        complete = {"schema_version": SCHEMA_VERSION, **manifest, "files": entries}
        write_json(folder / MANIFEST, {**complete, "sha256": _manifest_hash(complete)})
    return open_bundle(root)


def check_free(root: Path, *, overwrite: bool) -> None:
    """Refuse a bundle folder that holds something else, before any work is done.

    Raises:
        BundleError: `root` is a file, holds a bundle and `overwrite` is off, or holds other files.
        UsageError: a volume is mounted there.
    """
    refuse_mount(root)
    restore_stranded(root)  # else a bundle would turn up here only after all the work
    if not root.exists():
        return
    if not root.is_dir():
        raise BundleError(f"{root}: is a file; name a folder for the bundle")
    if (root / MANIFEST).is_file():
        if not overwrite:
            raise BundleError(f"{root}: holds a bundle already; pass --overwrite to replace it")
    elif any(root.iterdir()):
        raise BundleError(f"{root}: holds other files; name an empty or new folder")


def _manifest_hash(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
