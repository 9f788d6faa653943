"""`python -m training.train_teacher RECIPE --data DATA --output RUN`: a CNN teacher, with SAM."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deitlt.weights import save_weights
from training.augmentation.recipe_views import teacher_views
from training.command_line import INTERRUPTED, Command, parse, pick_recipe, run_program
from training.config import TeacherRecipe
from training.engine.distributed import World, join_world
from training.engine.feed import Feed
from training.engine.loop import Training, Validation
from training.engine.run_setup import prepare, say_notes
from training.engine.seeding import Stream, seed_global
from training.recipes import TEACHERS
from training.scoring import teacher_logits
from training.teachers.learner import TeacherLearner, build_method
from training.unread_options import unmoved_steps, unread_options

PROGRAM = "training.train_teacher"


@dataclass(frozen=True, kw_only=True)
class TeacherCommand(Command):
    """What `train_teacher` is told."""

    recipe: TeacherRecipe


def main(argv: Sequence[str] | None = None) -> int:
    """Train a teacher; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main, interrupted=INTERRUPTED)


def _main(argv: list[str]) -> None:
    recipe, rest = pick_recipe(PROGRAM, argv, TEACHERS)
    command: TeacherCommand = parse(PROGRAM, TeacherCommand, rest, recipe=recipe)
    say_notes(unread_options(command.recipe, recipe) + unmoved_steps(command.recipe, recipe))
    with join_world(command.device) as world:
        train_teacher(command, world)


def train_teacher(command: TeacherCommand, world: World) -> None:
    """Train one teacher as told, into its run folder.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    recipe = command.recipe
    world.set_deterministic(command.deterministic)
    with world.together():
        prepared = prepare(command, recipe, world)
        counts = prepared.splits.train.counts()
        seed_global(recipe.seed, Stream.WEIGHTS)
        method = build_method(recipe, counts, len(counts))
        feed = Feed(
            prepared.splits.train,
            teacher_views(recipe),
            world,
            batch_size=recipe.batch_size,
            micro_batch_size=recipe.micro_batch_size,
            seed=recipe.seed,
            companions=method.companions,
            num_workers=command.workers,
        )
    with world.leading():
        val_images = prepared.validation_images()
    graphed = command.compile is not False and not command.deterministic
    learner = TeacherLearner(recipe, method, world, graphed=graphed)
    network = method.classifier

    def save_selected(epoch: int, head: str, figures: dict[str, Any]) -> None:
        card = prepared.card("teacher", recipe.architecture(len(counts)), epoch, figures)
        save_weights(command.output / "teacher.safetensors", network, card)

    validation = None
    if val_images is not None:
        validation = Validation(
            val_images,
            lambda images: teacher_logits(network, images),
            counts.tolist(),
            selects=("teacher",),
        )
    prepared.claim(resume=command.resume)
    Training(
        prepared.run,
        recipe,
        learner,
        feed,
        world,
        inputs_sha256=prepared.splits.train_sha256,
        validation=validation,
        save_selected=save_selected,
    )()
    if world.leads:
        print(f"teacher in {command.output / 'teacher.safetensors'}")


if __name__ == "__main__":
    sys.exit(main())
