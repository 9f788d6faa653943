"""The views a recipe asks for."""

from training.augmentation import named_views
from training.augmentation.views import RandomView
from training.config import StudentRecipe, TeacherRecipe


def student_view(recipe: StudentRecipe) -> RandomView:
    """The random view a student, and its teacher through it, sees of each image."""
    shape = (recipe.img_size, recipe.mean, recipe.std)
    match recipe.view:
        case "strong":
            return named_views.student_view(
                *shape,
                policy=recipe.auto_augment,
                scale=recipe.crop_scale,
                ratio=recipe.crop_ratio,
                flip=recipe.flip,
                random_erasing=recipe.random_erasing,
            )
        case "three_augment":
            return named_views.three_augment_view(*shape, flip=recipe.flip)
        case "weak":
            return named_views.weak_view(*shape, padding=recipe.crop_padding, flip=recipe.flip)


def teacher_views(recipe: TeacherRecipe) -> list[RandomView]:
    """The random views a teacher learns from: one, or PaCo's two."""
    shape = (recipe.img_size, recipe.mean, recipe.std)
    padding, flip = recipe.crop_padding, recipe.flip
    match recipe.view:
        case "weak":
            view = named_views.weak_view(*shape, padding=padding, flip=flip)
        case "jitter":
            view = named_views.large_teacher_view(*shape, flip=flip)
        case "strong":
            view = named_views.student_view(
                *shape,
                policy=recipe.auto_augment,
                scale=recipe.crop_scale,
                ratio=recipe.crop_ratio,
                flip=flip,
                random_erasing=recipe.random_erasing,
            )
        case "paco_small":
            return list(named_views.paco_cifar_views(*shape, padding=padding, flip=flip))
        case "paco_large":
            return list(named_views.paco_imagenet_views(*shape, flip=flip))
    # GLMC's two views are two draws of the same one.
    return [view, view] if recipe.method == "glmc" else [view]
