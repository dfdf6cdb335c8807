"""Several processes train as one would: same losses, and a killed one takes nothing with it."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from dino_core.data import open_source
from dino_core.runs import Run
from dino_core.training import Recipe, train
from dino_core.training.feed import StepSampler, step_images
from dino_core.training.parallel import _Synced1d, _Synced2d

REPOSITORY = Path(__file__).resolve().parents[2]

TOGETHER = """
import json, os, sys
with open(f"{sys.argv[3]}.{os.environ['RANK']}", "a") as pids:
    print(os.getpid(), file=pids)
from dino_core.data import open_source
from dino_core.runs import Run
from dino_core.training import Recipe, train
recipe = Recipe.from_json(json.loads(sys.argv[1]))
train(recipe, open_source(sys.argv[2]), Run(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def recipe(tiny) -> Recipe:
    """Without drop path, which each process draws for itself."""
    backbone = dataclasses.replace(tiny.backbone, drop_path=0.0)
    optim = dataclasses.replace(tiny.optim, lr=0.003)  # AdamW enlarges rounding with its rate
    return dataclasses.replace(tiny, backbone=backbone, optim=optim, steps=20, save_every=5)


PLANNED = """
import dataclasses, json, sys
from dino_core import distributed
from dino_core.data import open_source
from dino_core.runs import Run
from dino_core.training import Recipe, planned, train
asked = Recipe.from_json(json.loads(sys.argv[1]))
source, run = open_source(sys.argv[2]), Run(sys.argv[3])
flags = lambda recipe: dataclasses.replace(asked, steps=recipe.steps)
said = []
recipe = planned("auto", source, run=run, flags=flags, max_seconds=2, tell=said.append)
print(json.dumps([recipe.to_json(), said]), flush=True)
train(recipe, source, run, max_seconds=2)
"""

ELSEWHERE = """
import torch
from dino_core import distributed
from dino_core.errors import command
from dino_core.training.parallel import process_group

@command
def main():
    with process_group(torch.device("cpu"), "training" if distributed.is_main() else "rehearsal"):
        while True:
            torch.distributed.barrier()

main()
"""

MISTAKE = """
from dino_core.errors import UserError, command

@command
def main():
    raise UserError("photos: no such folder")

main()
"""


def torchrun(recipe: Recipe, data: Path, run: Path, *flags: str) -> subprocess.Popen[str]:
    asked = json.dumps(recipe.to_json())
    return started(TOGETHER, run.parent, *flags, after=(asked, str(data), str(run)))


def started(
    program: str, folder: Path, *flags: str, after: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """`program` in two processes under torchrun, which gets `flags`; it gets what comes `after`."""
    script = folder / "program.py"
    script.write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    command += ["127.0.0.1", "--nproc-per-node=2", *flags, str(script), *after]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.mark.soak
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_two_processes_train_as_one(recipe, pictures, tmp_path, micro_batch):
    """20 steps with batch norm in the head; without it where two passes make a step, since it
    sees one pass at a time, and those hold other images."""
    if micro_batch:
        head = dataclasses.replace(recipe.head, batch_norm=False)
        recipe = dataclasses.replace(recipe, head=head, micro_batch=micro_batch)
    one = train(recipe, open_source(pictures), Run(tmp_path / "one"))
    output = finished(torchrun(recipe, pictures, tmp_path / "two"))
    assert "deprecated" not in output
    two = Run(tmp_path / "two")
    assert two.recipe()["versions"]["world_size"] == 2
    ours, theirs = one.metrics(), two.metrics()
    assert [row["step"] for row in theirs] == list(range(recipe.steps))
    for mine, other in zip(ours, theirs, strict=True):
        assert other["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert other["used_prototypes"] == pytest.approx(mine["used_prototypes"], abs=2)


def test_processes_share_every_batch(recipe):
    images = torch.arange(50).numpy() * 3
    whole = [chosen for _, chosen in step_images(images, recipe, range(12))]
    parts = [
        [chosen for _, chosen in step_images(images, recipe, range(12), rank, 4)]
        for rank in range(4)
    ]
    for step, batch in enumerate(whole):
        shared = [int(i) for rank in range(4) for i in parts[rank][step]]
        assert shared == batch.tolist()
    epoch = [int(i) for batch in whole[:6] for i in batch]
    assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [None, 1, 3, 5, 100])
def test_passes_are_equal_and_small_enough(recipe, world_size, micro_batch):
    recipe = dataclasses.replace(recipe, batch_size=24, micro_batch=micro_batch)
    passes = recipe.accumulate(world_size)
    share = 24 // world_size
    assert share % passes == 0
    assert share // passes <= (micro_batch or share)


def test_passes_join_to_the_batch(recipe):
    recipe = dataclasses.replace(recipe, micro_batch=2)
    images = torch.arange(40).numpy()
    sampler = StepSampler(images, recipe, [3, 7])
    keys = list(sampler)
    assert len(keys) == len(sampler) == 8
    flat = [index for part in keys for _, index in part]
    steps = step_images(images, recipe, [3, 7])
    assert flat == [index for _, chosen in steps for index in chosen.tolist()]


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (6, 5)), (nn.BatchNorm2d, (4, 5, 3, 2))]
)
def test_batch_norm_over_one_process_is_batch_norm(kind, shape):
    """Forward, gradients and running statistics; the group is of one."""
    torch.manual_seed(0)
    plain, synced = kind(5), kind(5)
    synced.__class__ = {nn.BatchNorm1d: _Synced1d, nn.BatchNorm2d: _Synced2d}[kind]
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    target = torch.randn(shape)
    (plain(x) * target).sum().backward()
    (synced(y) * target).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, atol=1e-5, rtol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[name], value)
    torch.testing.assert_close(synced.weight.grad, plain.weight.grad)
    torch.testing.assert_close(synced.eval()(x), plain.eval()(x))


@pytest.mark.soak
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_replaced_and_nothing_is_lost(
    recipe, pictures, tmp_path, assert_same, killed
):
    finished(torchrun(recipe, pictures, tmp_path / "whole"))
    process = torchrun(recipe, pictures, tmp_path / "killed", "--max-restarts=1")
    run = Run(tmp_path / "killed")
    while not run.checkpoints():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(int((tmp_path / f"killed.{killed}").read_text()), signal.SIGKILL)
    finished(process)
    assert "goes on at step" in (run.path / "log.txt").read_text()
    assert_same(run, Run(tmp_path / "whole"))
    assert all(math.isfinite(row["loss"]) for row in run.metrics())


def test_a_mistake_is_said_once_however_many_meet_it(tmp_path):
    """By the first process, at once; torchrun's report, which cannot be kept from coming, ends
    with the same sentence. A restart would not help: the second attempt knows, and says nothing."""
    process = started(MISTAKE, tmp_path, "--max-restarts=1")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert output.count("error: photos: no such folder") == 1
    assert output.count("photos: no such folder") == 2
    report = output.rpartition("Root Cause")[2]
    assert "photos: no such folder" in report
    assert "exitcode  : 2" in report


@pytest.mark.soak
def test_processes_rehearse_together_and_plan_the_same(recipe, pictures, tmp_path):
    """By the clock, so the number of steps is any; but one, and from what was measured."""
    recipe = dataclasses.replace(recipe, steps=None, workers=None)
    asked = json.dumps(recipe.to_json())
    process = started(PLANNED, tmp_path, after=(asked, str(pictures), str(tmp_path / "run")))
    output = finished(process)
    said = [json.loads(line) for line in output.splitlines() if line.startswith("[{")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert any("images/s" in sentence for sentence in said[0][1])
    assert Run(tmp_path / "run").recipe()["steps"] == said[0][0]["steps"]


@pytest.mark.soak
def test_a_run_that_only_some_see_is_a_sentence(tmp_path):
    process = started(ELSEWHERE, tmp_path)
    output, _ = process.communicate(timeout=600)
    assert "lie on a disk that all machines share" in output
