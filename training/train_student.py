"""`python -m training.train_student RECIPE --data DATA --teacher RUN --output RUN`: DeiT-LT."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitlt.errors import CheckpointError, UsageError
from deitlt.files import file_sha256
from deitlt.student import DeiTLT, PlainViT, build_student, load_transformer
from deitlt.weights import save_weights, weight_file
from training.augmentation.recipe_views import student_view
from training.command_line import INTERRUPTED, Command, parse, pick_recipe, run_program
from training.config import StudentRecipe
from training.engine.checkpoint import unfinished
from training.engine.distributed import World, join_world, speaks
from training.engine.feed import Feed
from training.engine.loop import Training, Validation
from training.engine.run_setup import is_compiled, prepare, say_notes
from training.engine.seeding import Stream, seed_global
from training.recipes import STUDENTS
from training.run_data import class_difference
from training.scoring import HeadLogits, student_logits
from training.students.distillation import StudentLearner
from training.teachers.certificate import check_teacher, measure_teacher
from training.teachers.labelling import load_teacher
from training.unread_options import unmoved_steps, unread_options

PROGRAM = "training.train_student"


@dataclass(frozen=True, kw_only=True)
class StudentCommand(Command):
    """What `train_student` is told."""

    recipe: StudentRecipe
    teacher: Path | None = None
    """Run folder of the teacher, or its teacher.safetensors; baselines without a DIST expert have
    none."""
    allow_weak_teacher: bool = False
    """Distil even from a teacher near chance (ablations)."""
    init: Path | None = None
    """Start from the weights of this run instead of random ones. Its classes must be those of the
    data, in that order, unless its heads are left behind (--new-heads; --retrain-heads, cRT)."""
    new_heads: bool = False
    """Leave the heads of --init behind and start new ones, for other classes; all is trained."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train a student; returns 0, or 2 with one line on what was wrong."""
    return run_program(PROGRAM, argv, _main, interrupted=INTERRUPTED)


def _main(argv: list[str]) -> None:
    recipe, rest = pick_recipe(PROGRAM, argv, STUDENTS)
    command: StudentCommand = parse(PROGRAM, StudentCommand, rest, recipe=recipe)
    say_notes(unread_options(command.recipe, recipe) + unmoved_steps(command.recipe, recipe))
    _check(command)
    with join_world(command.device) as world:
        train_student(command, world)


def _check(command: StudentCommand) -> None:
    recipe = command.recipe
    if recipe.distilled and command.teacher is None:
        raise UsageError("--teacher is missing: DIST learns from it (or pass --no-distilled)")
    if not recipe.distilled and command.teacher is not None:
        raise UsageError(f"recipe {recipe.name} has no DIST expert and takes no --teacher")
    if recipe.retrain_heads and command.init is None:
        raise UsageError("--init is missing: heads are trained on the features of a trained run")
    if command.new_heads and command.init is None:
        raise UsageError("--new-heads is for --init: without it all heads are new")
    for flag, source in (("teacher", command.teacher), ("init", command.init)):
        if source is None or not source.exists():
            continue
        if (done := unfinished(source)) and speaks():
            text = f"has finished {done}; --resume it first, unless it is good enough as it is"
            print(f"warning: --{flag} {source}: {text}", file=sys.stderr)
        folder = source if source.is_dir() else source.parent
        if folder.resolve() == command.output.resolve():  # --overwrite would remove its weights
            raise UsageError(f"--output {command.output}: is where --{flag} lies; name another one")


def train_student(command: StudentCommand, world: World) -> None:
    """Distil one student as told, into its run folder.

    Raises:
        DeitLTError: one of its kinds; the text is for the user.
    """
    recipe = command.recipe
    world.set_deterministic(command.deterministic)
    with world.together():
        prepared = prepare(command, recipe, world)
        counts = prepared.splits.train.counts()
        inputs = [prepared.splits.train_sha256]
        teacher = None
        if command.teacher is not None:
            teacher = load_teacher(
                command.teacher, source=recipe.preprocess() if recipe.renormalise else None
            )
            check_teacher(teacher.card, prepared.splits, command.teacher)
            teacher.to(world.device)
            inputs.append(file_sha256(weight_file(command.teacher, "teacher")))
        model = _initial(command, prepared.splits.train.classes)
        if command.init is not None:
            inputs.append(file_sha256(weight_file(command.init, "student")))
        feed = Feed(
            prepared.splits.train,
            [student_view(recipe)],
            world,
            batch_size=recipe.batch_size,
            micro_batch_size=recipe.micro_batch_size,
            seed=recipe.seed,
            sampling=recipe.sampling,
            num_workers=command.workers,
        )
        compiled = is_compiled(command.compile, world.device)
    with world.leading() as leading:
        val_images = prepared.validation_images()
        if teacher is not None and leading:
            measured = measure_teacher(teacher, prepared.splits, recipe.preprocess(), world.device)
            measured.check(command.teacher, allow_weak=command.allow_weak_teacher)
    learner = StudentLearner(
        recipe, model.to(world.device), teacher, feed, counts, world, compiled=compiled
    )

    def save_selected(epoch: int, head: str, figures: dict[str, Any]) -> None:
        averaged = learner.ema is not None and head in ("", "ema")
        weights = learner.ema.student if averaged and learner.ema is not None else model
        card = prepared.card("student", model.architecture(), epoch, figures)
        save_weights(command.output / "student.safetensors", weights, card)

    validation = None
    if val_images is not None:
        own = "average" if recipe.distilled else "cls"
        selects = (own, "ema") if learner.ema is not None else (own,)
        validation = Validation(
            val_images, lambda images: _logits(learner, images), counts.tolist(), selects
        )
    prepared.claim(resume=command.resume)
    Training(
        prepared.run,
        recipe,
        learner,
        feed,
        world,
        inputs_sha256=" ".join(inputs),
        validation=validation,
        save_selected=save_selected,
    )()
    if world.leads:
        print(f"student in {command.output / 'student.safetensors'}")


def _initial(command: StudentCommand, classes: list[str]) -> DeiTLT | PlainViT:
    """A student with its first weights: random, or those of another run.

    Raises:
        CheckpointError: the other run has another architecture, or its heads other classes.
    """
    recipe = command.recipe
    seed_global(recipe.seed, Stream.WEIGHTS)
    model = build_student(recipe.shape(len(classes)))
    if command.init is None:
        return model
    trained, card = load_transformer(command.init)
    tensors = trained.state_dict()
    difference = class_difference(card, classes)
    anew = command.new_heads or recipe.retrain_heads
    if difference and not anew:
        raise CheckpointError(
            f"{command.init}: {difference}, so its heads cannot be kept; pass --new-heads to start "
            "new ones, or --retrain-heads to train new ones alone, on its features as they are"
        )
    if anew:  # they may be of another kind, too
        new = {k: v for k, v in model.state_dict().items() if k.startswith("head")}
        tensors = {k: v for k, v in tensors.items() if not k.startswith("head")} | new
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{command.init}: its weights do not fit recipe {recipe.name}; "
            "size, patch size, image size and experts must be the same"
        ) from error
    return model


def _logits(learner: StudentLearner, images: Any) -> HeadLogits:
    bf16 = learner.recipe.bf16
    logits = student_logits(learner.student, images, bf16=bf16)
    if learner.ema is not None:
        averaged = student_logits(learner.ema.student, images, bf16=bf16)
        logits["ema"] = averaged["average" if "average" in averaged else "cls"]
    return logits


if __name__ == "__main__":
    sys.exit(main())
