"""The next batch's views are made while the step computes on this one's.

`feed.py` and `resident.py` give batches as they come from the workers; `prepared` makes their views
on the device, on a GPU one batch ahead and on a stream of its own.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_core.data import Quarantined
from dino_core.errors import UserError
from dino_core.models import ModelInfo
from dino_core.training.feed import Batch


@dataclass
class Prepared:
    """A batch whose views are made, as `Batch.views` gives them."""

    views: list[Tensor]
    quarantined: list[Quarantined]


def prepared(
    batches: Generator[Batch | UserError], info: ModelInfo, device: torch.device
) -> Generator[Prepared | UserError]:
    """The views of each batch, on the device; closes `batches` when it is closed.

    On a GPU copies, crops and colors of the next batch are given to a stream of their own before
    this one is handed out, so that they run beside the step. Nothing waits on the host.
    """
    with closing(batches):
        if device.type == "cuda":
            yield from _ahead(batches, info, device)
            return
        for batch in batches:
            yield batch if isinstance(batch, UserError) else _prepare(batch, info, device)


def _prepare(batch: Batch, info: ModelInfo, device: torch.device) -> Prepared:
    return Prepared(batch.views(info, device), batch.quarantined)


def _ahead(
    batches: Iterable[Batch | UserError], info: ModelInfo, device: torch.device
) -> Iterator[Prepared | UserError]:
    """One batch ahead, on a side stream."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # a store may still be on its way

    def begun(batch: Batch | UserError) -> tuple[Prepared | UserError, torch.cuda.Event]:
        with torch.cuda.stream(side):
            made = batch if isinstance(batch, UserError) else _prepare(batch, info, device)
            return made, side.record_event()

    def taken(made: Prepared | UserError, ready: torch.cuda.Event) -> Prepared | UserError:
        if isinstance(made, Prepared):
            stream = torch.cuda.current_stream(device)
            stream.wait_event(ready)
            for views in made.views:  # else their memory is given away while the step reads it
                views.record_stream(stream)
        return made

    waiting = None
    for batch in batches:
        following = begun(batch)
        if waiting is not None:
            yield taken(*waiting)
        waiting = following
    if waiting is not None:
        yield taken(*waiting)
