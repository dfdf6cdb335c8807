"""Taking a run up again: which checkpoint is good, under which recipe, and what is promised."""

import hashlib
import platform
import sys
from typing import Any

import timm
import torch

import dino_core
from dino_core import distributed
from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.runs import Run
from dino_core.training.checkpoint import Progress, load_checkpoint
from dino_core.training.parallel import agreed
from dino_core.training.recipe import Recipe
from dino_core.training.step import TrainState


def circumstances(device: torch.device) -> dict[str, Any]:
    """What a run is made with: that it goes on bit for bit is promised for these alone."""
    on_gpu = device.type == "cuda"
    return {
        "dino_core": dino_core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "world_size": distributed.world_size(),
    }


def check_start(run: Run, resume: bool) -> bool:
    """Whether there is a run to go on with; a run that is there without `resume` is refused."""
    if run.exists() and not resume:
        raise UserError(
            f"{run.path}: a run is already there; add --resume to go on with it, or name another"
        )
    return run.exists()


def origin(source: Source, device: torch.device) -> dict[str, Any]:
    """What stands in `recipe.json` beside the recipe: where the images and the numbers are from."""
    return {
        "data": source.spec,
        "images": len(source),
        "ids": ids_digest(source),
        "versions": circumstances(device),
    }


def ids_digest(source: Source) -> str:
    """A hash of the images' names in their order: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name in source.ids:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def saved_recipe(run: Run, source: Source) -> Recipe:
    """The recipe that a run was started under; other data than it was started on is refused."""
    saved = run.recipe()
    spec, images = saved.get("data", source.spec), saved.get("images", len(source))
    ids = saved.get("ids")
    if images != len(source):
        raise UserError(
            f"{run.path}: was started on {images:,} images ({spec}), but {source.spec} has "
            f"{len(source):,}; resume it with the same data, or start a new run with --init"
        )
    if ids is not None and ids != ids_digest(source):
        raise UserError(
            f"{run.path}: was started on other images: those of {source.spec} have other names "
            "than before; resume it with the same data, or start a new run with --init"
        )
    return Recipe.from_json(run.settings())


def changes(run: Run, device: torch.device) -> str | None:
    """A sentence where the circumstances are not those that the run was started in."""
    then, now = run.recipe().get("versions", {}), circumstances(device)
    other = [f"{k} {then[k]} then, {now[k]} now" for k in now if k in then and then[k] != now[k]]
    if not other:
        return None
    return f"goes on, though not bit for bit as it would have: {', '.join(other)}"


def take_up(run: Run, state: TrainState) -> Progress | None:
    """Load the newest checkpoint that can be read, with a sentence for each that cannot.

    Processes of a group load the one that the first of them could read. None when there is none; a
    `UserError` when all are damaged.
    """
    progress = None
    if distributed.is_main():
        _report_incomplete(run)
        progress = _newest_good(run, state)
    step = agreed(state.step if progress else None, state.center.device)
    if step is not None and not distributed.is_main():
        progress = load_checkpoint(run.checkpoint(step), state)
    return progress


def _newest_good(run: Run, state: TrainState) -> Progress | None:
    found = run.checkpoints()
    for checkpoint in reversed(found):
        try:
            return load_checkpoint(checkpoint, state)
        except UserError as error:
            _tell(f"{error}; trying the one before")
    if found:
        raise UserError(f"{run.path}: none of its checkpoints can be read; start a new run")
    return None


def _report_incomplete(run: Run) -> None:
    whole = run.checkpoints()
    for bad in run.incomplete():
        using = f"using {whole[-1].path.name}" if whole else "starting anew"
        missing = ", ".join(bad.missing())
        _tell(f"{run.path}: checkpoint {bad.path.name} is incomplete ({missing} missing); {using}")


def _tell(sentence: str) -> None:
    if distributed.is_main():
        print(sentence, file=sys.stderr)
