"""Processes agree on a name for their attempt, whatever earlier attempts left in the store."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from dino_core.errors import UserError
from dino_core.training.rendezvous import agent_store, agreed_attempt


@pytest.fixture
def server() -> dist.TCPStore:
    """A store on this machine, as torchrun keeps one."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def attempt(server, world_size: int, late: dict[int, float] | None = None) -> set[str]:
    """The names that processes of one attempt come to hold; `late` are those that come later."""

    def come(rank: int) -> str:
        time.sleep((late or {}).get(rank, 0))
        store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
        return agreed_attempt(store, rank, world_size, timedelta(seconds=60))

    with ThreadPoolExecutor(world_size) as pool:
        return set(pool.map(come, range(world_size)))


def test_every_attempt_gets_a_name_of_its_own(server):
    names = [attempt(server, size) for size in (3, 3, 2, 4, 1)]
    assert [len(name) for name in names] == [1] * 5
    assert len(set.union(*names)) == 5


@pytest.mark.parametrize("slow", range(3))
def test_a_late_process_finds_no_one_of_an_earlier_attempt(server, slow):
    """Whoever comes late, the others have what it said in the attempt before before their eyes."""
    first = attempt(server, 3)
    second = attempt(server, 3, late={slow: 0.3})
    assert len(first | second) == 2


def test_a_call_that_nobody_answered_is_not_taken_up(server):
    """The first process of the earlier attempt died between its call and its word to go."""
    server.set("here/0", "old")
    server.set("here/1", "old too")
    server.set("call", json.dumps(["dead", ["old", "old too"]]))
    server.set("dead/1", "")
    server.set("dead/go", "")
    (name,) = attempt(server, 2, late={0: 0.2})
    assert name != "dead"


def test_whoever_waits_in_vain_says_so(server):
    for rank in range(2):
        with pytest.raises(UserError, match=f"process {rank} waited 0:00:00.1"):
            agreed_attempt(server, rank, 3, timedelta(seconds=0.1))


def test_without_torchrun_there_is_no_store(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert agent_store() is None


def test_keys_of_one_attempt_are_unknown_to_the_next(server, monkeypatch):
    world = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    for name, value in (world | address).items():
        monkeypatch.setenv(name, value)
    earlier, later = agent_store(), agent_store()
    assert earlier is not None
    assert later is not None
    earlier.set("address", "of a process that is dead")
    assert earlier.check(["address"])
    assert not later.check(["address"])
