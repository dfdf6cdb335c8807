"""Taking a run up again: which checkpoint is good, under which recipe, and what is promised."""

import platform
import sys
from dataclasses import replace
from typing import Any

import timm
import torch

import dino_core
from dino_core import distributed
from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.runs import Checkpoint, Run
from dino_core.training.checkpoint import Progress, load_checkpoint
from dino_core.training.recipe import Recipe
from dino_core.training.state import create_state
from dino_core.training.step import TrainState


def circumstances() -> dict[str, Any]:
    """What a run is made with: that it goes on bit for bit is promised for these alone."""
    return {
        "dino_core": dino_core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
        "world_size": distributed.world_size(),
    }


def check_start(run: Run, resume: bool) -> bool:
    """Whether there is a run to go on with; a run that is there without `resume` is refused."""
    if not run.exists():
        return False
    if not resume:
        raise UserError(
            f"{run.path}: a run is already there; add --resume to go on with it, or name another"
        )
    return bool(run.checkpoints())


def saved_recipe(run: Run, source: Source) -> Recipe:
    """The recipe that a run was started under; other data than it was started on is refused."""
    saved = run.recipe()
    saved.pop("versions", None)
    spec, images = saved.pop("data", source.spec), saved.pop("images", len(source))
    if images != len(source):
        raise UserError(
            f"{run.path}: was started on {images:,} images ({spec}), but {source.spec} has "
            f"{len(source):,}; resume it with the same data, or start a new run with --init"
        )
    return Recipe.from_json(saved)


def changes(run: Run) -> str | None:
    """A sentence where the circumstances are not those that the run was started in."""
    then, now = run.recipe().get("versions", {}), circumstances()
    other = [f"{k} {then[k]} then, {now[k]} now" for k in now if k in then and then[k] != now[k]]
    if not other:
        return None
    return f"goes on, though not bit for bit as it would have: {', '.join(other)}"


def newest_good(
    run: Run, recipe: Recipe, device: torch.device
) -> tuple[TrainState, Progress] | None:
    """The state of the newest checkpoint that can be read, a sentence for each that cannot.

    None when no checkpoint is whole; a `UserError` when there are whole ones and all are damaged.
    """
    # What `init` gave is in the checkpoint, and may be gone from where it was.
    blank = replace(recipe, init=None)
    _report_incomplete(run)
    for checkpoint in reversed(run.checkpoints()):
        state = create_state(blank, device)
        try:
            return state, load_checkpoint(checkpoint, state)
        except UserError as error:
            _tell(f"{error}; trying the one before")
    if run.checkpoints():
        raise UserError(f"{run.path}: none of its checkpoints can be read; start a new run")
    return None


def last_good(run: Run, step: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, or the newest before step `step` was done."""
    whole = [found for found in run.checkpoints() if step is None or found.step <= step]
    return whole[-1] if whole else None


def _report_incomplete(run: Run) -> None:
    whole = last_good(run)
    for bad in run.incomplete():
        using = f"using {whole.path.name}" if whole else "starting anew"
        missing = ", ".join(bad.missing())
        _tell(f"{run.path}: checkpoint {bad.path.name} is incomplete ({missing} missing); {using}")


def _tell(sentence: str) -> None:
    if distributed.is_main():
        print(sentence, file=sys.stderr)
