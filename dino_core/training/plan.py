"""What to do with these images on this machine, and what it costs, from twenty real steps.

    recipe = planned("auto", source, max_seconds=seconds_of("30m"), tell=print)

Settings come from the number and size of the images, the device and the time (`auto.py`), or from
a named recipe; the length from the speed that was measured here.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from dino_core import distributed
from dino_core.data import BadImage, Source
from dino_core.errors import UserError
from dino_core.models import device_of
from dino_core.runs import Run
from dino_core.training.auto import Choice, Speed, choose, fit_to_time, measured, warmed_up
from dino_core.training.durations import spoken
from dino_core.training.quality import split
from dino_core.training.recipe import Recipe
from dino_core.training.recipes import named
from dino_core.training.rehearsal import rehearse
from dino_core.training.starting import going_on

SAMPLE = 32  # images whose size is looked at
FEW = 100  # steps below which a run is told to be too short
TRYING = 0.2  # of a time budget, which the rehearsal takes besides, at most
APART = 10  # steps between checks, at least, where nobody asked for more of them
AUTO = "auto"


def planned(
    name: str,
    source: Source,
    *,
    run: Run | None = None,
    flags: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    max_seconds: float | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Recipe:
    """The recipe `name` (or `auto`), changed by `flags`, as long as `max_seconds` allow.

    `flags` puts in what the user asked for, and has the last word. `tell` hears what was chosen and
    why, and what it will cost; afterwards it stands in the log of `run`. Processes that train
    together rehearse together, too, and come to the same recipe.

    Raises `UserError` for a name that is none, images that cannot be trained on, and a disk that is
    too full for `run`.
    """
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        tell(sentence)

    recipe = _planned(name, source, run, flags, max_seconds, say)
    if run is not None and distributed.is_main():
        for sentence in said:
            run.log(sentence)
    return _seldom_checked(recipe, flags, len(source))


def _planned(
    name: str,
    source: Source,
    run: Run | None,
    flags: Callable[[Recipe], Recipe],
    max_seconds: float | None,
    tell: Callable[[str], None],
) -> Recipe:
    auto = name == AUTO
    flags = going_on(Recipe() if auto else named(name), flags, tell)
    chosen = _chosen(flags, source, max_seconds) if auto else Choice(flags(named(name)), [])
    if auto:
        chosen = _own_length(chosen, flags, len(source))
    for reason in chosen.reasons:
        tell(reason)
    if max_seconds is None:
        return chosen.recipe
    tell("trying it out ...")
    rehearsal = rehearse(chosen.recipe, source, TRYING * max_seconds, tell)
    seconds = rehearsal.left_to_train(chosen.recipe, max_seconds)
    speed = measured(chosen.recipe, rehearsal.images_per_second)
    fitted = _lengthened(
        _chosen(flags, source, seconds, speed) if auto else chosen,
        flags, len(source), seconds, speed,
    )  # fmt: skip
    recipe = rehearsal.seldom_checked(fitted.recipe, max_seconds)
    if fitted.recipe.quality.checks and not recipe.quality.checks:
        check, time = spoken(rehearsal.seconds_per_check), spoken(max_seconds)
        tell(f"checks = 0: a quality check takes {check}, too much of {time}")
    fitted = Choice(replace(recipe, workers=rehearsal.workers), fitted.reasons)
    for reason in fitted.reasons:
        if reason not in chosen.reasons:
            tell(reason)
    images = len(split(fitted.recipe, len(source)).training)
    steps = fitted.recipe.resolved(images).steps
    assert steps is not None
    tell(rehearsal.sentence(fitted.recipe, steps))
    if steps < FEW:
        tell("so few steps teach next to nothing: give it more time, or a faster machine")
    if run is not None:
        _check_disk(run, rehearsal.disk(fitted.recipe, steps))
    return fitted.recipe


def _lengthened(
    choice: Choice,
    flags: Callable[[Recipe], Recipe],
    images: int,
    seconds: float,
    speed: Callable[[Recipe], float],
) -> Choice:
    """As long as the time allows with what the user set, which may change what a step costs."""
    fitted = fit_to_time(choice.recipe, images, seconds, speed(choice.recipe))
    recipe = flags(fitted.recipe)
    reasons = [r for r in choice.reasons if not r.startswith("steps =")]
    return Choice(recipe, reasons + fitted.reasons * (recipe.steps == fitted.recipe.steps))


def _own_length(choice: Choice, flags: Callable[[Recipe], Recipe], images: int) -> Choice:
    """Where the user set the length of the run, its warm-ups follow; not those the user set."""
    recipe = choice.recipe
    if flags(replace(recipe, steps=None, epochs=-1)) == replace(recipe, steps=None, epochs=-1):
        return choice
    reasons = [r for r in choice.reasons if not r.startswith(("steps =", "epochs ="))]
    return Choice(flags(warmed_up(recipe, images)), reasons)


def _seldom_checked(recipe: Recipe, flags: Callable[[Recipe], Recipe], images: int) -> Recipe:
    """In a short run no more than a check every `APART` steps, unless the user set their number."""
    unset = replace(recipe.quality, checks=-1)
    if flags(replace(recipe, quality=unset)).quality.checks != -1 or not recipe.quality.checks:
        return recipe
    trained_on = images - recipe.held_out(images)
    steps = recipe.steps or recipe.epochs * max(1, recipe.steps_per_epoch(trained_on))
    few = min(recipe.quality.checks, max(1, steps // APART))
    return replace(recipe, quality=replace(recipe.quality, checks=few))


def _check_disk(run: Run, needed: int) -> None:
    place = next(
        path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{run.path}: the run needs {needed / 2**30:.1f} GB of disk, and {free / 2**30:.1f} GB "
            "are free: make room, name another folder, or keep fewer checkpoints (--keep)"
        )


def _chosen(
    flags: Callable[[Recipe], Recipe],
    source: Source,
    max_seconds: float | None,
    images_per_second: Speed | None = None,
) -> Choice:
    if len(source) < 2:
        raise UserError(f"{source.spec}: one image is too few to learn from")
    device = device_of(flags(Recipe()).device)
    choice = choose(
        len(source),
        median_side(source),
        device=device.type,  # type: ignore[arg-type]
        memory=torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else None,
        seconds=max_seconds,
        cores=distributed.cores(),
        processes=distributed.world_size(),
        images_per_second=images_per_second,
    )
    return Choice(flags(choice.recipe), choice.reasons)


def median_side(source: Source) -> float:
    """The median short side in pixels, of `SAMPLE` images spread over the source."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int):
        try:
            sides.append(min(source.image(int(index)).shape[:2]))
        except BadImage:
            continue
    if not sides:
        raise UserError(f"{source.spec}: none of the {SAMPLE} images looked at can be read")
    return float(np.median(sides))
