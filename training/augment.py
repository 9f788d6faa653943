"""Random views for training: weak ones for the teacher, strong and mixed ones for the student."""

from collections.abc import Callable
from functools import partial

from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from torch import Tensor
from torchvision import transforms

from deitlt.preprocess import PreprocessSpec, resize_crop
from training.config import StudentRecipe, TeacherRecipe
from training.data import Transform


def teacher_transform(recipe: TeacherRecipe) -> Transform:
    """Random crop of the padded image and flip, normalised: `(3, S, S)` (LDAM-DRW's transform)."""
    steps: list[Callable[..., object]] = [
        partial(_to_input_size, spec=recipe.preprocess()),
        transforms.RandomCrop(recipe.img_size, padding=recipe.crop_padding),
        transforms.RandomHorizontalFlip(recipe.flip),
        transforms.ToTensor(),
        transforms.Normalize(recipe.mean, recipe.std),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def student_transform(recipe: StudentRecipe) -> Transform:
    """DeiT's strong view by timm, `(3, S, S)`, in the official order.

    Random resized crop (bicubic), flip, RandAugment, normalise, random erasing by pixel noise. No
    colour jitter: timm drops it where RandAugment is on, so the official runs had none.
    """
    transform = create_transform(
        recipe.img_size,
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.flip,
        color_jitter=None,
        auto_augment=recipe.auto_augment or None,
        interpolation="bicubic",
        mean=recipe.mean,
        std=recipe.std,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )
    for step in transform.transforms:
        if isinstance(step, RandAugment):
            for operation in step.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = partial(_posterize, posterize=operation.aug_fn)
    return transform  # type: ignore[no-any-return]


def student_mixing(
    recipe: StudentRecipe, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup and CutMix by timm with smoothed soft targets `(B, C)`; None where both are off.

    One of the two a batch, each half of the time; partners are the batch in reverse order.
    """
    if recipe.mixup <= 0 and recipe.cutmix <= 0:
        return None
    return Mixup(  # type: ignore[no-any-return]
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def _posterize(
    image: Image.Image, bits: int, *, posterize: Callable[..., Image.Image], **options: object
) -> Image.Image:
    """Posterize to `bits`; to none, as timm asks at full strength, gives black.

    Pillow did so until it began to refuse 0 bits.
    """
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


def _to_input_size(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    return Image.fromarray(resize_crop(image, spec))
