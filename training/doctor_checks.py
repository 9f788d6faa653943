"""What the doctor looks for in labelled images; every finding is a line that says what to do.

An error makes training stop or its figures wrong; a warning costs accuracy or limits what may be
claimed.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deitlt.errors import DataError, ImageError
from deitlt.labelled import Inspection, LabelledImages
from deitlt.labelled_rows import Fault
from deitlt.longtail import carve_validation, long_tailed_subset
from deitlt.preprocess import FORMATS, SUFFIXES, decode_file
from training.config import Recipe

# A class needs as many evaluation images for its accuracy to be worth a sentence: with 4 all right,
# the 95 % interval still begins at 51 %.
CLAIMABLE = 5
# Files handed to the threads at once: what waits is small, and Ctrl-C waits for no more than these.
CHUNK = 256
NAMED = 3

Splits = dict[str, LabelledImages]


class Findings(NamedTuple):
    """Errors and warnings."""

    errors: list[Fault]
    warnings: list[Fault]


class _Picture(NamedTuple):
    split: str
    name: str
    path: Path


class Look(NamedTuple):
    """A decoded image: width and height in px, mode in the file, hash of its pixels."""

    size: tuple[int, int]
    mode: str
    digest: bytes


def look_at(paths: Sequence[Path], num_workers: int) -> Iterator[Look | Fault]:
    """What each file holds, in order; it is decoded as training and evaluation will."""
    with ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(_look, paths[start : start + CHUNK])


def run_splits(
    found: Splits, imbalance_factor: float | None, val_fraction: float, findings: Findings
) -> Splits:
    """The images that a run with a recipe's default seeds trains on, selects on and is judged on.

    As `deitlt.run_splits.load_splits` draws them, but for faulty images, and nothing is refused:
    what would be goes to `findings`.
    """
    name = "train" if "train" in found else "all"
    if name not in found:
        text = "there are no training images, so this can be evaluated on but not trained on"
        findings.errors.append(Fault("no_training_images", f"{text}; add a train split to train"))
        return found
    pool = found[name]
    run = {"train": pool} | {split: found[split] for split in ("val", "test") if split in found}
    num_classes = len(pool.classes)
    if not 0 <= val_fraction <= 0.5:
        text = f"--val-fraction {val_fraction:g} is outside 0 to 0.5"
        findings.errors.append(Fault("cannot_be_split", text))
        return run
    try:
        if imbalance_factor is not None:
            pool = pool.subset(
                long_tailed_subset(pool.labels, num_classes, imbalance_factor, Recipe.subset_seed)
            )
        if "val" not in found and val_fraction > 0:
            kept, held_out = carve_validation(
                pool.labels, num_classes, val_fraction, Recipe.split_seed, pool.groups
            )
            run["val"] = pool.subset(held_out)
            pool = pool.subset(kept)
    except DataError as error:
        findings.errors.append(Fault("cannot_be_split", str(error)))
    run["train"] = pool
    return {split: run[split] for split in ("train", "val", "test") if split in run}


def check_names(found: Splits, findings: Findings) -> None:
    """Class names that are one word to a person and two to a program."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for images in found.values():
        for name in images.classes:
            word = unicodedata.normalize("NFC", "".join(name.split())).casefold()
            spellings[word].add(name)
    for names in spellings.values():
        if len(names) > 1:
            listed = " and ".join(repr(name) for name in sorted(names))
            text = f"classes {listed} differ only by case or spaces; give both one name"
            findings.errors.append(Fault("similar_names", text))


def check_pictures(found: Splits, run: Splits, looks: dict[Path, Look], findings: Findings) -> None:
    """Equal pictures: across splits, under two labels, and where a held-out share may get a copy.

    Equal means equal decoded pixels. A published benchmark has a few of its own; its figures stay
    comparable only with those left in.
    """
    copies: dict[bytes, list[_Picture]] = defaultdict(list)
    for split, images in found.items():
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            if path in looks:
                copies[looks[path].digest].append(_Picture(split, images.classes[label], path))
    again = []
    for first, *others in copies.values():
        across = next((other for other in others if other.split != first.split), None)
        if across is not None:
            text = f"{first.path} of {first.split} and {across.path} of {across.split} are the same"
            text += " picture; remove one, or figures on it measure memory"
            findings.errors.append(Fault("picture_in_two_splits", text))
        contrary = next((other for other in others if other.name != first.name), None)
        if contrary is not None:
            text = f"{first.path} is {first.name!r}, and the same picture {contrary.path} is "
            text += f"{contrary.name!r}; keep the one whose label is right"
            findings.warnings.append(Fault("picture_under_two_labels", text))
        again += [o.path for o in others if (o.split, o.name) == (first.split, first.name)]
    if again:
        text = f"{_listed(again, 'image')} in a class of a split more than once; remove the copies"
        findings.warnings.append(Fault("repeated_picture", text))
    if "val" in run and "val" not in found:
        trained_on = {looks[path].digest for path in run["train"].paths if path in looks}
        val = [p for p in run["val"].paths if p in looks and looks[p].digest in trained_on]
        if val:
            text = (
                f"{_listed(val, 'held-out image')} with a copy trained on; remove the copies, or "
            )
            text += "give them one group in a CSV"
            findings.warnings.append(Fault("held_out_picture_trained_on", text))


def check_coverage(found: Splits, run: Splits, findings: Findings) -> None:
    """Classes that the splits of a run say nothing or little about."""
    for split, images in run.items():
        if split == "train":
            continue
        counts, names = images.counts(), np.array(images.classes)
        none = names[counts == 0].tolist()
        carved = split not in found
        if none and carved:
            text = f"{_listed(none, 'class')} without held-out images"
            text += "; the epoch is selected without them unless they get more images or groups"
            findings.warnings.append(Fault("nothing_to_hold_out", text))
        elif none:
            text = f"{_listed(none, 'class')} without images in {split}"
            findings.warnings.append(
                Fault("class_missing_from_split", f"{text}; add some, or nothing is known of them")
            )
        few = names[(counts > 0) & (counts < CLAIMABLE)].tolist()
        if few and not carved:
            text = f"{_listed(few, 'class')} with fewer than {CLAIMABLE} {split} images"
            text += "; add some, or claim no accuracy for them alone"
            findings.warnings.append(Fault("too_few_to_claim", text))
    if "test" not in run and "train" in run:
        text = "there is no test split, so figures can only be taken on images that selected the "
        text += "epoch; set some aside as test"
        findings.warnings.append(Fault("no_test_split", text))


def check_files_left_out(source: Path, inspection: Inspection, findings: Findings) -> None:
    """Files in class folders that bear no name of an image and so are not read."""
    if inspection.layout != "class folders":
        return
    folders = {path.parent for images in inspection.splits.values() for path in images.paths}
    suffixes: Counter[str] = Counter()
    for folder in folders:
        for entry in folder.iterdir():
            hidden = entry.name.startswith(".")
            if not hidden and entry.suffix.lower() not in SUFFIXES and entry.is_file():
                suffixes[entry.suffix.lower() or "no suffix"] += 1
    if suffixes:
        text = ", ".join(f"{number} x {suffix}" for suffix, number in suffixes.most_common(NAMED))
        text = f"{source}: {suffixes.total()} files in class folders are not read ({text})"
        known = " ".join(sorted(SUFFIXES))
        findings.warnings.append(Fault("files_left_out", f"{text}; convert images to {known}"))


def _look(path: Path) -> Look | Fault:
    try:
        image = decode_file(path)
    except ImageError as error:
        return Fault(error.code, f"{error}; repair, replace or remove it")
    with Image.open(path, formats=FORMATS) as header:
        mode = header.mode
    shape = "x".join(map(str, image.size)).encode()
    return Look(image.size, mode, blake2b(shape + b":" + image.tobytes(), digest_size=16).digest())


def _listed(names: Sequence[object], noun: str) -> str:
    """`2 classes ('a', 'b')`: how many, and a few of them."""
    number = len(names)
    some = ", ".join(repr(str(name)) for name in names[:NAMED])
    counted = noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {counted} ({some}{', ...' if number > NAMED else ''})"
