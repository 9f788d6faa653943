"""Recipes: one function each, whose docstring is the run book.

Derived recipes replace fields of another. The resolved fields are saved with every run.
"""

from collections.abc import Callable
from dataclasses import replace

from deitlt.preprocess import CIFAR_MEAN, CIFAR_STD
from training.config import StudentRecipe, TeacherRecipe


def teacher_digits() -> TeacherRecipe:
    """ResNet-32 on long-tailed handwritten digits at their own 8 px: the demo's teacher.

    Source: the CIFAR teacher below, shortened to 438 images of a sixteenth of the size.
    Command: `python -m training.train_teacher digits --data runs/demo/data --output runs/teacher`
    """
    return TeacherRecipe(
        name="digits",
        img_size=8,
        imbalance_factor=20,
        epochs=60,
        batch_size=32,
        lr=0.1,
        weight_decay=2e-4,
        warmup_epochs=5,
        drw_epoch=48,
        decay_epochs=(48, 54),
        decay_factor=0.1,
        rho=0.1,
        crop_padding=1,
        flip=0.0,
    )


def teacher_cifar() -> TeacherRecipe:
    """ResNet-32 on CIFAR-10-LT or CIFAR-100-LT: LDAM-DRW + SAM, the paper's first teacher.

    Source: the official Saddle-LongTail code; spec: 200 epochs, rho 0.8 throughout, both passes of
    SAM update batch-norm's statistics.
    Published (selected on the test set): 81.9 % on CIFAR-10-LT, 45.4 % on CIFAR-100-LT, imbalance
    factor 100. Not yet run to its end here.
    Command: `python -m training.train_teacher cifar --data cifar10/ --imbalance-factor 100 --output
    runs/teacher`. For the paper's 12,406 training images with none held out: `--val-fraction 0`.
    """
    return TeacherRecipe(
        name="cifar",
        img_size=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        epochs=200,
        batch_size=128,
        lr=0.1,
        weight_decay=2e-4,
        warmup_epochs=5,
        drw_epoch=160,
        decay_epochs=(160, 180),
        decay_factor=0.01,
        rho=0.8,
        sam_batch_norm="both",
        crop_padding=4,
    )


def student_digits() -> StudentRecipe:
    """Pico student on long-tailed handwritten digits: the demo's student.

    Source: the CIFAR student below at the size of 438 images. Digits fill their picture and are no
    longer themselves when mirrored, so crops keep 80 % of the area and nothing is flipped. Few
    images need many steps: small batches, a higher learning rate, RandAugment at half strength.
    Mixing goes on in the DRW phase, which starts early, and labels are smoothed by 0.2: otherwise
    the CLS expert memorises the head and outshouts the DIST expert in the average. Chosen on
    training digits that the long-tailed subset leaves out.
    Command: `python -m training.train_student digits --data runs/demo/data --teacher runs/teacher
    --output runs/student`
    """
    return StudentRecipe(
        name="digits",
        size="pico",
        img_size=16,
        patch_size=4,
        drop_path_rate=0.0,
        imbalance_factor=20,
        epochs=240,
        batch_size=32,
        lr=2e-3,
        weight_decay=0.05,
        drw_epoch=96,
        mix_in_drw=True,
        label_smoothing=0.2,
        flip=0.0,
        crop_scale=(0.8, 1.0),
        auto_augment="rand-m5-mstd0.5-inc1",
        checkpoint_epochs=10,
    )


def student_cifar() -> StudentRecipe:
    """DeiT-LT-B on CIFAR-10-LT or CIFAR-100-LT, the paper's main student (224 px, patch 16).

    Source: the official script: effective batch 1024 in micro-batches of 128, peak learning rate
    2.5e-4, 1200 epochs, DRW from 1100 without mixing or smoothing.
    Deviations: no repeated augmentation, so an epoch is one pass over all images (the official
    epoch shows a third of them three times); bf16 in place of fp16.
    Published with the LDAM teacher: 84.8 % on CIFAR-10-LT, 52.0 % on CIFAR-100-LT, imbalance factor
    100. Not yet run here: it needs a GPU.
    Command: `python -m training.train_student cifar --data cifar10/ --imbalance-factor 100
    --teacher runs/teacher --output runs/student`
    """
    return StudentRecipe(
        name="cifar",
        size="base",
        img_size=224,
        patch_size=16,
        crop_pct=0.875,
        epochs=1200,
        batch_size=1024,
        micro_batch_size=128,
        lr=2.5e-4,
        weight_decay=0.05,
        warmup_epochs=5,
        drw_epoch=1100,
    )


def student_cifar_nano() -> StudentRecipe:
    """Nano student at CIFAR's own 32 px (64 patches of 4 px): runs on a CPU.

    Source: ours; the CIFAR recipe with a hundredth of its arithmetic. Not the paper's model.
    Command: `python -m training.train_student cifar_nano --data cifar10/ --imbalance-factor 100
    --teacher runs/teacher --output runs/student`
    """
    return replace(
        student_cifar(),
        name="cifar_nano",
        size="nano",
        img_size=32,
        patch_size=4,
        crop_pct=1.0,
        epochs=200,
        batch_size=128,
        micro_batch_size=None,
        lr=5e-4,
        drw_epoch=180,
    )


TEACHERS: dict[str, Callable[[], TeacherRecipe]] = {
    "digits": teacher_digits,
    "cifar": teacher_cifar,
}
STUDENTS: dict[str, Callable[[], StudentRecipe]] = {
    "digits": student_digits,
    "cifar": student_cifar,
    "cifar_nano": student_cifar_nano,
}
