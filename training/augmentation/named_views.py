"""The views that recipes name: what student and teachers train on.

Each function returns the transform of one training script or paper; numbers that are not arguments
are that source's.
"""

from training.augmentation.crops import PaddedCrop, ResizedCrop
from training.augmentation.policies import (
    AutoAugmentCifar10,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    Policy,
    RandAugment,
    ThreeAugment,
)
from training.augmentation.views import Colour, RandomView


def student_view(
    img_size: int,
    mean: Colour,
    std: Colour,
    *,
    policy: str = "rand-m9-mstd0.5-inc1",
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    random_erasing: float = 0.25,
) -> RandomView:
    """DeiT's strong view, as the released DeiT-LT scripts train with it; `policy` may be empty.

    Raises:
        UsageError: a policy string that is not supported, or a number out of its range.
    """
    policies: tuple[Policy, ...] = (RandAugment.parse(policy),) if policy else ()
    return RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=ResizedCrop(scale, ratio),
        flip=flip,
        policies=policies,
        random_erasing=random_erasing,
    )


def three_augment_view(
    img_size: int, mean: Colour, std: Colour, *, flip: float = 0.5, jitter: float = 0.3
) -> RandomView:
    """DeiT III's 3-Augment with the simple crop (table S.1 of the DeiT-LT paper)."""
    return RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=PaddedCrop(4, reflect=True, square=False),
        flip=flip,
        policies=(ThreeAugment(), ColorJitter(jitter, jitter, jitter)),
    )


def weak_view(
    img_size: int, mean: Colour, std: Colour, *, padding: int = 4, flip: float = 0.5
) -> RandomView:
    """Window of the padded image and flip: LDAM-DRW's teachers on CIFAR."""
    crop = PaddedCrop(padding)
    return RandomView(img_size=img_size, mean=mean, std=std, crop=crop, flip=flip)


def large_teacher_view(
    img_size: int, mean: Colour, std: Colour, *, flip: float = 0.5
) -> RandomView:
    """Resized crop, flip and colour jitter: LDAM-DRW's teachers on ImageNet-LT and iNaturalist."""
    return RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=ResizedCrop(interpolation="bilinear"),
        flip=flip,
        policies=(ColorJitter(0.4, 0.4, 0.4),),
    )


def paco_cifar_views(
    img_size: int, mean: Colour, std: Colour, *, padding: int = 4, flip: float = 0.5
) -> tuple[RandomView, RandomView]:
    """The two views of PaCo's CIFAR script: AutoAugment with Cutout, and a SimCLR-like one."""
    first = RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=PaddedCrop(padding),
        flip=flip,
        policies=(AutoAugmentCifar10(),),
        cutout_px=img_size // 2,  # 16 of CIFAR's 32
        fill=(128, 128, 128),
    )
    second = RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=ResizedCrop((0.2, 1.0), interpolation="bilinear"),
        flip=flip,
        policies=(
            ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
            Grayscale(0.2),
            GaussianBlur(0.5),
        ),
    )
    return first, second


def paco_imagenet_views(
    img_size: int, mean: Colour, std: Colour, *, flip: float = 0.5
) -> tuple[RandomView, RandomView]:
    """The two views of PaCo's ImageNet-LT and iNaturalist scripts (`randcls_sim`).

    The script's RandAugment transforms with a random one of two filters; here it is the crop's. In
    its second view it flips last, which gives the same images but for the blur's rounding.
    """
    jitter = ColorJitter(0.4, 0.4, 0.4)
    crop = ResizedCrop(interpolation="bilinear")
    first = RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=crop,
        flip=flip,
        policies=(jitter, RandAugment.parse("rand-n2-m10-mstd0.5")),
    )
    second = RandomView(
        img_size=img_size,
        mean=mean,
        std=std,
        crop=crop,
        flip=flip,
        policies=(jitter, Grayscale(0.2), GaussianBlur(0.5)),
    )
    return first, second
