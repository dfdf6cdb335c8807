"""Where the processes of a group meet: in torchrun's store, each attempt in its own part of it.

torchrun keeps one key-value store for as long as it runs, and a group leaves its members' addresses
there. When a process dies and all are started anew, a new one may read an old one's address before
the new one is written, and fail ("connectFullMesh ... Connection refused") or wait for it in vain:
https://github.com/pytorch/pytorch/issues/135712, there still in torch 2.15. Nothing that torchrun
tells its processes names the attempt: each machine counts its own restarts. So they agree on a name
here, before anything else.
"""

import json
import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from dino_core import distributed
from dino_core.errors import UserError

PATIENCE = timedelta(minutes=15)  # for machines that come late, and data that is slow to list
PAUSE = 0.02  # seconds between two looks


def agent_store() -> dist.Store | None:
    """A fresh part of torchrun's store; None where torchrun keeps none, and torch makes its own."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)
    meeting = dist.PrefixStore("dino_core", store)
    attempt = agreed_attempt(meeting, distributed.rank(), distributed.world_size())
    return dist.PrefixStore(attempt, store)


def agreed_attempt(
    store: dist.Store, rank: int, world_size: int, patience: timedelta = PATIENCE
) -> str:
    """A name for this attempt that all of its processes hold, whatever earlier ones left behind.

    Everyone says who is there, the first process calls those it sees, and who hears itself called
    answers. A call that names a process of an earlier attempt gets no answer; the first process
    calls again when it sees another one. With all the answers it says go. Raises `UserError` when
    some process does not come.
    """
    own = f"{socket.gethostname()} {os.getpid()} {time.time_ns()} {rank}"
    store.set(f"here/{rank}", own)
    until = time.monotonic() + patience.total_seconds()
    called: list[str] = []
    attempt = ""
    while time.monotonic() < until:
        if rank == 0:
            seen = _present(store, world_size)
            if seen and seen != called:
                called, attempt = seen, f"{own} {time.time_ns()}"
                store.set("call", json.dumps([attempt, called]))
            if called and store.check([f"{attempt}/{other}" for other in range(1, world_size)]):
                store.set(f"{attempt}/go", "")
                return attempt
        elif store.check(["call"]):
            attempt, called = json.loads(store.get("call"))
            if rank < len(called) and called[rank] == own:
                store.set(f"{attempt}/{rank}", "")
                if store.check([f"{attempt}/go"]):
                    return attempt
        time.sleep(PAUSE)
    raise UserError(
        f"process {rank} waited {patience} for the other {world_size - 1} in vain: see what they "
        "said above, and whether all machines reach the one that MASTER_ADDR names"
    )


def _present(store: dist.Store, world_size: int) -> list[str]:
    """Who said to be there, by rank; none while some have not."""
    names = [f"here/{rank}" for rank in range(world_size)]
    return [store.get(name).decode() for name in names] if store.check(names) else []
