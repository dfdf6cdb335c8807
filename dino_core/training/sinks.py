"""Where numbers go besides `metrics.jsonl`: TensorBoard and Weights & Biases, when asked for."""

from collections.abc import Mapping
from typing import Any, Protocol

from dino_core.errors import UserError
from dino_core.runs import Run


class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's `tensorboard/`; a resumed run forgets what came after its step."""

    def __init__(self, run: Run, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs a package: pip install tensorboard") from None
        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the same name in a project at Weights & Biases: the one thing here that sends."""

    def __init__(self, run: Run, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs a package and an account: pip install wandb") from None
        self.session: Any = wandb.init(
            project=project, name=run.name, id=run.name, resume="allow", config=run.recipe()
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.session.log(dict(numbers), step=step)

    def close(self) -> None:
        self.session.finish()


def open_sinks(run: Run, step: int, tensorboard: bool, wandb: str | None) -> list[Sink]:
    """The sinks that were asked for. Raises `UserError` for a package that is missing."""
    sinks: list[Sink] = [TensorBoard(run, step)] if tensorboard else []
    return [*sinks, WeightsAndBiases(run, wandb)] if wandb else sinks
