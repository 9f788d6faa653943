"""What a step is fed: the right images, whoever decodes them and wherever they lie."""

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deitlt.errors import ImageError
from deitlt.labelled import LabelledImages, read_labelled
from training.augmentation.named_views import paco_cifar_views, weak_view
from training.augmentation.recipe_views import student_view
from training.augmentation.views import Plan, RandomView
from training.engine import feed as feed_module
from training.engine.distributed import World
from training.engine.feed import Feed, MicroBatch, StreamedCrops, Ticket
from training.engine.samplers import epoch_order
from training.recipes import students

Tree = Callable[[Path, Mapping[str, int]], Path]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRONG = student_view(students.digits())
CROPS = student_view(replace(students.digits(), auto_augment="", flip=0.5))
# Nothing is random: the middle of each image, normalised.
STILL = weak_view(16, MEAN, STD, padding=0, flip=0.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, class_tree: Tree) -> LabelledImages:
    """26 images of 24 x 20 px, all different but for the same number in another class."""
    root = class_tree(tmp_path_factory.mktemp("feed") / "data", {"a": 13, "b": 8, "c": 5})
    found = read_labelled(root)["all"]
    for number, path in enumerate(found.paths):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:4] = number * 9  # a mark that no crop of the middle shows
        pixels[9:11] = number * 9
        Image.fromarray(pixels).save(path)
    return found


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images fit into no memory."""
    monkeypatch.setattr(feed_module, "CACHE_BYTES", 0)


def feed(images: LabelledImages, *views: RandomView, **options: Any) -> Feed:
    world = options.pop("world", World(torch.device("cpu")))
    fixed: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 4, "seed": 3}
    return Feed(images, list(views), world, **{**fixed, **options})


def flat(steps: Any) -> list[MicroBatch]:
    return [batch for step in steps for batch in step]


def assert_same(ours: list[MicroBatch], theirs: list[MicroBatch]) -> None:
    assert [batch.number for batch in ours] == [batch.number for batch in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our.labels, their.labels)
        for our_view, their_view in zip(our.views, their.views, strict=True):
            assert torch.equal(our_view, their_view)


def itself(images: LabelledImages, index: int) -> NDArray[np.float64]:
    """An image as `STILL` shows it: resized and cut by Pillow, then normalised."""
    pixels = STILL.prepare(Image.open(images.paths[index]).convert("RGB"))
    shown = (pixels / 255 - MEAN) / STD
    return shown.transpose(2, 0, 1)


def check_contents(batches: list[MicroBatch], order: list[int], images: LabelledImages) -> None:
    for batch in batches:
        indices = order[4 * batch.number : 4 * batch.number + 4]
        assert batch.labels.tolist() == images.labels[indices].tolist()
        expected = np.stack([itself(images, index) for index in indices])
        torch.testing.assert_close(
            batch.views[0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("epoch", [0, 4])
def test_the_images_of_an_epoch_come_in_its_order(images: LabelledImages, epoch: int) -> None:
    batches = flat(feed(images, STILL).steps(epoch))
    assert [batch.number for batch in batches] == list(range(6))  # 26 = 6 * 4 + 2
    check_contents(batches, epoch_order("all", images.labels, 3, epoch).tolist(), images)


@pytest.mark.usefixtures("streaming")
def test_images_that_do_not_fit_in_memory_come_in_the_same_order(images: LabelledImages) -> None:
    batches = flat(feed(images, STILL, num_workers=0).steps(1))
    check_contents(batches, epoch_order("all", images.labels, 3, 1).tolist(), images)


def test_a_view_of_fixed_size_keeps_uneven_images_as_it_wants_them(
    images: LabelledImages, tmp_path: Path
) -> None:
    Image.open(images.paths[5]).resize((30, 30)).save(tmp_path / "large.png")
    uneven = replace(images, paths=[*images.paths[:5], tmp_path / "large.png", *images.paths[6:]])
    order = epoch_order("all", images.labels, 3, 0).tolist()
    assert 5 in order[:24]
    check_contents(flat(feed(uneven, STILL).steps(0)), order, uneven)


def test_the_first_image_that_cannot_be_read_is_named(
    images: LabelledImages, tmp_path: Path
) -> None:
    """However many are read at once."""
    paths = list(images.paths)
    for index in (9, 11, 17):
        paths[index] = tmp_path / f"{index}.png"
        paths[index].write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"9\.png"):
        feed(replace(images, paths=paths), STILL)


@pytest.mark.parametrize("other", ["streamed", "uneven"])
def test_views_are_nearly_the_same_wherever_images_are_cropped(
    images: LabelledImages, other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resident = flat(feed(images, CROPS).steps(2))
    others = images
    if other == "streamed":
        monkeypatch.setattr(feed_module, "CACHE_BYTES", 0)
    else:  # an image that the epoch leaves out
        last = int(epoch_order("all", images.labels, 3, 2)[-1])
        Image.open(images.paths[last]).resize((9, 30)).save(tmp_path / "other.png")
        paths = list(images.paths)
        paths[last] = tmp_path / "other.png"
        others = replace(images, paths=paths)
    cropped = flat(feed(others, CROPS, num_workers=0).steps(2))
    assert [batch.number for batch in cropped] == [batch.number for batch in resident]
    for ours, theirs in zip(cropped, resident, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        levels = (ours.views[0] - theirs.views[0]).abs() * 255 * 0.225
        assert levels.mean() < 1
        assert levels.max() < 4


@pytest.mark.usefixtures("streaming")
def test_worker_processes_change_nothing(images: LabelledImages) -> None:
    many, none = (feed(images, STRONG, num_workers=workers) for workers in (2, 0))
    for epoch in (0, 1):  # the workers stay for the second epoch
        assert_same(flat(many.steps(epoch)), flat(none.steps(epoch)))
    # An epoch that was broken off leaves nothing behind.
    next(many.steps(2))
    assert_same(flat(many.steps(3, 1)), flat(none.steps(3, 1)))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_an_epoch_goes_on_in_the_middle(images: LabelledImages, start: int) -> None:
    fed = feed(images, STRONG)
    whole = list(fed.steps(1))
    rest = list(fed.steps(1, start))
    assert len(rest) == fed.num_steps - start
    assert_same(flat(rest), flat(whole[start:]))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many views were made at once, each time."""
    made: list[int] = []
    apply = RandomView.apply

    def counted(view: RandomView, pixels: torch.Tensor, plan: Plan) -> torch.Tensor:
        made.append(len(plan))
        return apply(view, pixels, plan)

    monkeypatch.setattr(RandomView, "apply", counted)
    return made


@pytest.mark.parametrize("start", [0, 1, 2])
def test_steps_whose_views_are_made_together_are_those_made_alone(
    images: LabelledImages, start: int, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    views = paco_cifar_views(16, MEAN, STD)
    alone = flat(feed(images, *views).steps(2, start))
    monkeypatch.setitem(feed_module.PIXELS_AT_ONCE, "cpu", (2 * 8 * 16**2, 2 * 8 * 16**2))
    made.clear()
    together = flat(feed(images, *views).steps(2, start))
    assert made == ([16, 16, 8, 8] if start < 2 else [8, 8])  # of 26 images in steps of 8
    assert [batch.number for batch in together] == [batch.number for batch in alone]
    assert_same(together, alone)


def test_of_large_images_no_more_views_are_made_at_once_than_a_micro_batch_has(
    images: LabelledImages, made: list[int]
) -> None:
    """Else a smaller micro-batch would not take less memory."""
    assert len(flat(feed(images, STRONG).steps(0))) == len(made) == 6
    assert set(made) == {4}


def test_workers_share_decoded_images_and_get_no_copies(images: LabelledImages) -> None:
    """Whatever the way in which Python starts processes (from 3.14 on not by forking)."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)

    class Alive(list[Any]):
        def __reduce__(self) -> Any:
            raise AssertionError("images are copied")

    try:
        decoded = Alive(STILL.prepare(Image.open(p).convert("RGB")) for p in images.paths)
        crops = StreamedCrops(images.paths, decoded, [STILL], 1, torch.device("cpu"))
        indices = np.arange(3)
        plan = STILL.draw(np.random.default_rng(0), 3)
        ((_, (pixels,)),) = crops.load(iter([Ticket(0, indices, [plan])]))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert pixels.shape == (3, 3, 16, 16)


def test_views_depend_on_seed_epoch_and_micro_batch_alone(images: LabelledImages) -> None:
    def batches(epoch: int = 0, **options: Any) -> list[MicroBatch]:
        torch.manual_seed(epoch)  # global generators take no part
        return flat(feed(images, STRONG, **options).steps(epoch))

    first = batches()
    assert_same(batches(), first)
    assert_same(batches(batch_size=24), first)
    halves = [batches(world=World(torch.device("cpu"), rank, 2)) for rank in (0, 1)]
    assert [[batch.number for batch in half] for half in halves] == [[0, 2, 4], [1, 3, 5]]
    assert_same(sorted(halves[0] + halves[1], key=lambda batch: batch.number), first)


def test_an_image_looks_otherwise_in_every_micro_batch_epoch_and_seed(
    images: LabelledImages,
) -> None:
    """One image many times over, so that order makes no difference."""
    one = images.subset(np.zeros(8, np.int64))
    fed = feed(one, STRONG)
    first, second = flat(fed.steps(0))
    others = [second, flat(fed.steps(1))[0], flat(feed(one, STRONG, seed=4).steps(0))[0]]
    for other in others:
        assert not torch.equal(other.views[0], first.views[0])
    assert len(torch.unique(first.views[0], dim=0)) == 4


def test_companions_double_a_micro_batch(images: LabelledImages) -> None:
    fed = feed(images, STILL, companions=True)
    plain = feed(images, STILL)
    assert fed.num_steps == plain.num_steps
    orders = [epoch_order("all", images.labels, 3, 0, draw=draw).tolist() for draw in (0, 1)]
    for batch in flat(fed.steps(0)):
        where = slice(4 * batch.number, 4 * batch.number + 4)
        indices = orders[0][where] + orders[1][where]
        assert batch.views[0].shape == (8, 3, 16, 16)
        assert batch.labels.tolist() == images.labels[indices].tolist()
        expected = np.stack([itself(images, index) for index in indices])
        assert np.abs(batch.views[0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("cached", [True, False])
def test_two_views_show_the_same_images_differently(
    images: LabelledImages, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached:
        monkeypatch.setattr(feed_module, "CACHE_BYTES", 0)
    views = paco_cifar_views(16, MEAN, STD, padding=2, flip=0.5)
    (step, *_) = feed(images, *views, num_workers=0).steps(0)
    first, second = step[0].views
    assert first.shape == second.shape == (4, 3, 16, 16)
    assert not torch.allclose(first, second)
    for tensor in (first, second):
        assert tensor.isfinite().all()


def test_repeated_views_of_an_image_stand_side_by_side(images: LabelledImages) -> None:
    fed = feed(images, CROPS, sampling="repeated", micro_batch_size=6, batch_size=12)
    for batch in flat(fed.steps(0)):
        labels = batch.labels.view(-1, 3)
        assert (labels == labels[:, :1]).all()
        views = batch.views[0].view(-1, 3, 3, 16, 16)
        assert not torch.equal(views[:, 0], views[:, 1])


@pytest.mark.parametrize("num_images", [24, 25, 26])
@pytest.mark.parametrize("micro", [2, 3, 4])
def test_epochs_of_full_repetition_are_of_whole_micro_batches(
    images: LabelledImages, num_images: int, micro: int
) -> None:
    """Thirds of a set need not be equally large, but every epoch has as many steps."""
    some = images.subset(np.arange(num_images))
    options = {"sampling": "repeated_full", "batch_size": 2 * micro, "micro_batch_size": micro}
    fed = feed(some, STILL, **options)
    seen = []
    for epoch in range(3):
        batches = flat(fed.steps(epoch))
        assert [len(batch.labels) for batch in batches] == [micro] * fed.num_micro
        seen += [view for batch in batches for view in batch.views[0]]
    # An incomplete micro-batch is filled up, not left out.
    assert {view.numpy().tobytes() for view in seen} == {
        view.numpy().tobytes()
        for batch in flat(feed(some, STILL, micro_batch_size=1, batch_size=1).steps(0))
        for view in batch.views[0]
    }


def test_an_epoch_that_is_cut_below_a_batch_still_has_a_step(images: LabelledImages) -> None:
    """Repeated augmentation cuts 310 images to 256 samples, fewer than a batch of 300."""
    many = images.subset(np.arange(310) % len(images))
    fed = feed(many, STILL, sampling="repeated", batch_size=300, micro_batch_size=None)
    assert fed.num_steps == 1
    assert len(flat(fed.steps(0))) == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_file_is_named_in_one_line(
    images: LabelledImages,
    cached: bool,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the cache it is found before the first step, else when it is needed."""
    if not cached:
        monkeypatch.setattr(feed_module, "CACHE_BYTES", 0)
    (tmp_path / "damaged.png").write_bytes(images.paths[-1].read_bytes()[:200])
    broken = replace(images, paths=[*images.paths[:-1], tmp_path / "damaged.png"])

    def go() -> None:
        fed = feed(broken, STILL, num_workers=workers)
        assert not cached
        for epoch in range(3):  # the order of some epoch does not leave it out
            list(fed.steps(epoch))

    with pytest.raises(ImageError) as caught:
        go()
    assert "damaged.png" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
