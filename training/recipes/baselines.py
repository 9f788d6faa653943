"""What the paper compares with (tables 2 to 4) and takes away (tables 1, 5 and 6).

The other half of table 5, a teacher without SAM, is the teacher recipe `cifar_paco_no_sam`; table 6
is `cifar_tiny`, `cifar_small` and `cifar`. Teacher and DRW of table 1 are not stated in the paper;
its figures are too low for DRW, so its recipes have none, and compare with `cifar_no_drw`.
"""

from dataclasses import replace

from training.config import StudentRecipe
from training.recipes import students


def vit() -> StudentRecipe:
    """ViT-B on CIFAR-LT: the plain transformer, labels alone.

    Source: table 2; schedule and augmentation of `cifar`, no DIST token, no DRW.
    Expect: published at imbalance factor 100: 62.6 on CIFAR-10-LT, 35.0 on CIFAR-100-LT. Not yet
    run here.
    Milestones: not known.
    Hardware: as the student `cifar`, without the teacher.
    Command: `python -m training.train_student vit --data cifar10/ --imbalance-factor 100 --output
    runs/vit`
    """
    return replace(students.cifar(), name="vit", distilled=False, drw_epoch=1200)


def vit_crt() -> StudentRecipe:
    """ViT-B + cRT: the heads of `vit` trained anew on balanced classes.

    Source: table 2; classifier re-training (Kang et al. 2020): features frozen, ten epochs of
    class-balanced batches. The paper gives no schedule; the learning rate is ours.
    Expect: published at imbalance factor 100: 68.9 on CIFAR-10-LT, 38.9 on CIFAR-100-LT. Not yet
    run here.
    Milestones: none.
    Hardware: minutes on a GPU.
    Command: `python -m training.train_student vit_crt --data cifar10/ --imbalance-factor 100 --init
    runs/vit --output runs/vit_crt`
    """
    return replace(
        vit(),
        name="vit_crt",
        epochs=10,
        drw_epoch=10,
        warmup_epochs=1,
        sampling="balanced",
        retrain_heads=True,
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        lr=1e-3,
        checkpoint_epochs=1,
    )


def vit_ldam() -> StudentRecipe:
    """ViT-B with LDAM-DRW's loss: what the CNN's own remedy does for a transformer.

    Source: cosine head, margin 0.5, scale 30, class weights from epoch 1100, on the label loss;
    mixed labels take the loss of each class in its share. The paper gives no details.
    Expect: not published as a table. Not yet run here.
    Milestones: not known.
    Hardware: as `vit`.
    Command: `python -m training.train_student vit_ldam --data cifar10/ --imbalance-factor 100
    --output runs/vit_ldam`
    """
    return replace(
        vit(),
        name="vit_ldam",
        drw_epoch=1100,
        drw_on_cls=True,
        cls_loss="ldam",
        classifier="cosine",
    )


def deit() -> StudentRecipe:
    """DeiT-B: distilled from the strongly augmented teacher `cifar_strong`, without DRW.

    Source: tables 2 and 5, first row: the teacher knows such images, so DIST is no tail expert.
    Expect: published at imbalance factor 100: 70.2 on CIFAR-10-LT, 31.3 on CIFAR-100-LT. Not yet
    run here.
    Milestones: not known.
    Hardware: published 33.3 h, where the student `cifar` takes 19.0 h.
    Command: `python -m training.train_student deit --data cifar10/ --imbalance-factor 100 --teacher
    runs/teacher_strong --output runs/deit`
    """
    return replace(students.cifar(), name="deit", drw_epoch=1200)


def deit3() -> StudentRecipe:
    """DeiT-III-B on CIFAR-LT: the stronger way to train a plain transformer.

    Source: table 2; DeiT-III's changes to DeiT: 3-Augment, binary cross-entropy, LayerScale, LAMB
    at 3e-3, no smoothing, no erasing. The paper gives no schedule for CIFAR-LT: length, batch and
    decay are those of `cifar`, LayerScale 1e-4 and drop-path 0.2 our choice.
    Expect: published at imbalance factor 100: 59.1 on CIFAR-10-LT, 38.1 on CIFAR-100-LT. Not yet
    run here.
    Milestones: not known.
    Hardware: as `vit`.
    Command: `python -m training.train_student deit3 --data cifar10/ --imbalance-factor 100 --output
    runs/deit3`
    """
    return replace(
        vit(),
        name="deit3",
        view="three_augment",
        random_erasing=0.0,
        label_smoothing=0.0,
        cls_loss="bce",
        layer_scale=1e-4,
        drop_path_rate=0.2,
        optimizer="lamb",
        lr=3e-3,
        crop_pct=1.0,
    )


def imagenet_lt_vit() -> StudentRecipe:
    """ViT-B on ImageNet-LT (table 3).

    Source: schedule of the student `imagenet_lt`.
    Expect: published 37.5 (56.9; 30.4; 10.3). Not yet run here.
    Milestones: not known.
    Hardware: as the student.
    Command: `torchrun --nproc-per-node 8 -m training.train_student imagenet_lt_vit --data
    ImageNet_LT/ --output runs/vit`
    """
    return replace(students.imagenet_lt(), name="imagenet_lt_vit", distilled=False, drw_epoch=1400)


def imagenet_lt_deit3() -> StudentRecipe:
    """DeiT-III-B on ImageNet-LT (table 3).

    Source: `deit3` with the length and batch of the student `imagenet_lt`.
    Expect: published 48.4 (70.4; 40.9; 12.8). Not yet run here.
    Milestones: not known.
    Hardware: as the student.
    Command: `torchrun --nproc-per-node 8 -m training.train_student imagenet_lt_deit3 --data
    ImageNet_LT/ --output runs/deit3`
    """
    return replace(
        deit3(),
        name="imagenet_lt_deit3",
        epochs=1400,
        drw_epoch=1400,
        batch_size=2048,
        checkpoint_epochs=1,
        val_epochs=10,
    )


def inat18_vit() -> StudentRecipe:
    """ViT-B on iNaturalist-2018 (table 4).

    Source: schedule of the student `inat18`.
    Expect: published 54.2 (64.3; 53.9; 52.1). Not yet run here.
    Milestones: not known.
    Hardware: as the student.
    Command: `torchrun --nproc-per-node 8 -m training.train_student inat18_vit --data iNaturalist18/
    --output runs/vit`
    """
    return replace(students.inat18(), name="inat18_vit", distilled=False, drw_epoch=1000)


def inat18_deit3() -> StudentRecipe:
    """DeiT-III-B on iNaturalist-2018 (table 4).

    Source: `imagenet_lt_deit3` in 1000 epochs.
    Expect: published 61.0 (72.9; 62.8; 55.8). Not yet run here.
    Milestones: not known.
    Hardware: as the student.
    Command: `torchrun --nproc-per-node 8 -m training.train_student inat18_deit3 --data
    iNaturalist18/ --output runs/deit3`
    """
    return replace(imagenet_lt_deit3(), name="inat18_deit3", epochs=1000, drw_epoch=1000)


def cifar_weak_views() -> StudentRecipe:
    """Table 1, first row: weak views, which the teacher labels almost without error.

    Source: padded crop and flip; the padding is the teacher's 4 of 32 px, scaled to 224.
    Expect: published on CIFAR-10-LT: the teacher labels 97.2 of its training images rightly, the
    student has 54.2. Not yet run here.
    Milestones: not known.
    Hardware: as the student `cifar`.
    Command: `python -m training.train_student cifar_weak_views --data cifar10/ --imbalance-factor
    100 --teacher runs/teacher --output runs/weak`
    """
    return replace(
        students.cifar(),
        name="cifar_weak_views",
        drw_epoch=1200,
        view="weak",
        crop_padding=28,
        mixup=0.0,
        cutmix=0.0,
    )


def cifar_unmixed() -> StudentRecipe:
    """Table 1, second row: strong views without mixing.

    Source: `cifar` without mixup and CutMix.
    Expect: published on CIFAR-10-LT: the teacher labels 71.9 rightly (56.6 with mixing), the
    student has 69.6 (79.4 with mixing). Not yet run here.
    Milestones: not known.
    Hardware: as the student `cifar`.
    Command: `python -m training.train_student cifar_unmixed --data cifar10/ --imbalance-factor 100
    --teacher runs/teacher --output runs/unmixed`
    """
    return replace(students.cifar(), name="cifar_unmixed", drw_epoch=1200, mixup=0.0, cutmix=0.0)


def cifar_no_drw() -> StudentRecipe:
    """Table 5, second row: out-of-distribution distillation without DRW.

    Source: `cifar` that never re-weights, and so mixes to the end.
    Expect: published, teacher without SAM: 84.5 on CIFAR-10-LT, 48.9 on CIFAR-100-LT; DRW makes it
    87.3 and 54.5. Not yet run here.
    Milestones: as `cifar` up to epoch 1100.
    Hardware: as the student `cifar`.
    Command: `python -m training.train_student cifar_no_drw --data cifar10/ --imbalance-factor 100
    --teacher runs/teacher_paco_no_sam --output runs/no_drw`
    """
    return replace(students.cifar(), name="cifar_no_drw", drw_epoch=1200)
