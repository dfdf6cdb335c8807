"""What goes wrong: steps that are not finite, runs that diverge, features that collapse."""

import copy
import dataclasses
import json
import math
import shutil

import pytest
import torch

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.models import ModelInfo, ProjectionHead, create_backbone
from dino_core.runs import Run
from dino_core.training import GuardConfig, Recipe, TeacherConfig, train
from dino_core.training.feed import Batch, step_images
from dino_core.training.monitor import WINDOW, Monitor
from dino_core.training.network import Network, create_teacher
from dino_core.training.optim import create_optimizer, ema_update
from dino_core.training.quality import split
from dino_core.training.step import Schedules, TrainState, train_step

# -- one step ---------------------------------------------------------------------------------


def small_state(optimizer: str) -> TrainState:
    torch.manual_seed(0)
    options = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    backbone = create_backbone(ModelInfo("vit_tiny_patch16_224", 8, 32, options=options))
    student = Network(backbone, ProjectionHead(48, 64, 64, 32, batch_norm=True))
    return TrainState(
        student=student,
        teacher=create_teacher(student),
        optimizer=create_optimizer(optimizer, student),
        center=torch.zeros(1, 64),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    networks = {"student": state.student, "teacher": state.teacher}
    tensors = {f"{n}.{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}
    for i, parameter in enumerate(state.student.parameters()):
        for name, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{i}"] = torch.as_tensor(value)
    return {k: v.detach().clone() for k, v in tensors.items()} | {"center": state.center.clone()}


def crops(seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 32, 32, generator=draw), torch.randn(8, 3, 16, 16, generator=draw)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(optimizer, value):
    state = small_state(optimizer)
    settings = Schedules(Recipe(steps=20, batch_size=4), 10).settings(5)
    settings = dataclasses.replace(settings, precision="fp32")
    assert train_step(state, [crops(0)], settings).finite
    before = everything(state)
    broken = crops(1)
    broken[0][0, 0, 0, 0] = value
    assert not train_step(state, [broken], settings).finite
    after = everything(state)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert train_step(state, [crops(2)], settings).finite
    assert not torch.equal(everything(state)["center"], before["center"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_broken_step_leaves_no_trace_in_the_next(optimizer):
    state = small_state(optimizer)
    settings = Schedules(Recipe(steps=20, batch_size=4), 10).settings(5)
    settings = dataclasses.replace(settings, precision="fp32")
    train_step(state, [crops(0)], settings)
    other = small_state(optimizer)
    train_step(other, [crops(0)], settings)
    broken = crops(1)
    broken[1][:] = math.nan
    train_step(state, [broken], settings)
    for each in (state, other):
        train_step(each, [crops(2)], settings)
    ours, theirs = everything(state), everything(other)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_gated_ema_is_the_plain_one_where_the_step_was_finite():
    teacher, student = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    plain = copy.deepcopy(teacher)
    ema_update(teacher, student, 0.996, finite=torch.tensor(True))
    ema_update(plain, student, 0.996)
    torch.testing.assert_close(teacher.weight, plain.weight, rtol=0, atol=1e-7)
    before = teacher.weight.clone()
    ema_update(teacher, student, 0.996, finite=torch.tensor(False))
    assert torch.equal(teacher.weight, before)


# -- a run ------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch, pictures, tiny):
    """Makes the views of some steps NaN: `poison({5, 6})`; their images are theirs for good."""
    source = open_source(pictures)
    training = split(tiny, len(source)).training
    chosen = dict(enumerate(c for _, c in step_images(training, tiny, range(tiny.steps))))
    views = Batch.views

    def apply(steps: set[int]) -> None:
        bad = [chosen[step].tolist() for step in steps]

        def poisoned(self: Batch, *args: object) -> list[torch.Tensor]:
            groups = views(self, *args)
            return [g * math.nan for g in groups] if self.indices.tolist() in bad else groups

        monkeypatch.setattr(Batch, "views", poisoned)

    return apply


def progress(run: Run, step: int | None = None) -> dict:
    return json.loads((run.checkpoint(step).path / "state.json").read_text())["progress"]


def test_one_broken_step_is_passed_over(pictures, tiny, tmp_path, poison):
    poison({5})
    run = train(tiny, open_source(pictures), Run(tmp_path / "run"))
    assert run.status()["state"] == "finished"
    losses = {row["step"]: row["loss"] for row in run.metrics()}
    assert losses[5] is None
    assert all(loss is not None for step, loss in losses.items() if step != 5)
    assert progress(run)["skipped"] == []


def test_a_run_goes_back_once_and_resumes_exactly(pictures, tiny, tmp_path, poison, assert_same):
    poison({5, 6, 7})
    source = open_source(pictures)
    whole = train(tiny, source, Run(tmp_path / "whole"))
    assert whole.status()["state"] == "finished"
    assert progress(whole)["skipped"] == [[5, 8]]
    assert [row["step"] for row in whole.metrics()] == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert "goes back to step 4" in (whole.path / "warnings.jsonl").read_text()
    assert progress(whole, 4)["skipped"] == [[5, 8]]  # at once, not with the next checkpoint

    stopped = train(tiny, source, Run(tmp_path / "stopped"), max_seconds=1e-9)
    assert stopped.status()["reason"] == "its time is up"
    for _ in range(tiny.steps):
        train(tiny, source, stopped, resume=True, max_seconds=1e-9)
        if stopped.status()["state"] == "finished":
            break
    assert_same(stopped, whole)


def test_a_second_failure_stops_and_names_the_images(pictures, tiny, tmp_path, poison):
    poison({5, 6, 7, 9, 10, 11})
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"the second time; the images .* failed.json"):
        train(tiny, open_source(pictures), run)
    failed = json.loads((run.path / "failed.json").read_text())
    assert [entry["step"] for entry in failed] == [5, 6, 7, 9, 10, 11]
    assert all((pictures / image).is_file() for entry in failed for image in entry["images"])
    assert run.status()["state"] == "failed"
    assert run.checkpoint().step == 4  # steps 5 to 7 were passed over, 8 is no milestone


def test_a_run_that_is_broken_from_the_start_says_so(pictures, tiny, tmp_path, poison, weights_of):
    poison(set(range(12)))
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match="the second time"):
        train(tiny, open_source(pictures), run)
    assert all(tensor.isfinite().all() for tensor in weights_of(run).values())


# -- collapse ---------------------------------------------------------------------------------

COLLAPSES = {  # cause: how it is provoked, what it is called, and within how many steps
    "temperature too high": (TeacherConfig(momentum=0.99, teacher_temp=0.3), "flat", 20),
    "no sharpening": (TeacherConfig(momentum=0.99, teacher_temp=1.0), "flat", 10),
    "no centering": (TeacherConfig(momentum=0.99, center_momentum=1.0), "the same target", 40),
}
LONGEST = 40


def provoked(recipe: Recipe, teacher: TeacherConfig, steps: int) -> Recipe:
    """Without batch norm in the head, which spreads the features whatever else is wrong."""
    head = dataclasses.replace(recipe.head, batch_norm=False)
    optim = dataclasses.replace(recipe.optim, lr=0.04)
    recipe = dataclasses.replace(recipe, head=head, optim=optim, teacher=teacher)
    return dataclasses.replace(recipe, steps=steps, save_every=1000)


@pytest.mark.parametrize("cause", COLLAPSES)
def test_collapse_is_named(cause, pictures, tiny, tmp_path):
    teacher, words, steps = COLLAPSES[cause]
    run = train(provoked(tiny, teacher, steps), open_source(pictures), Run(tmp_path / "run"))
    warnings = (run.path / "warnings.jsonl").read_text()
    assert words in warnings


def test_a_healthy_run_of_the_same_length_raises_nothing(pictures, tiny, tmp_path):
    recipe = provoked(tiny, TeacherConfig(momentum=0.99), LONGEST)
    run = train(recipe, open_source(pictures), Run(tmp_path / "run"))
    assert not (run.path / "warnings.jsonl").exists()


def test_a_collapse_can_stop_the_run(pictures, tiny, tmp_path):
    recipe = provoked(tiny, COLLAPSES["no sharpening"][0], LONGEST)
    recipe = dataclasses.replace(recipe, guards=GuardConfig(on_collapse="stop"))
    run = train(recipe, open_source(pictures), Run(tmp_path / "run"))
    assert run.status()["state"] == "stopped"
    assert "flat" in run.status()["reason"]
    assert run.checkpoint().step < 10


def warnings_of(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "warnings.jsonl").read_text().splitlines()]


def cut_back(run: Run, copy_: Run, step: int) -> Run:
    """A run as it was when its process was killed after the checkpoint at `step`."""
    shutil.copytree(run.path, copy_.path)
    for checkpoint in copy_.checkpoints():
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)
    (copy_.path / "warnings.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in warnings_of(run) if row["step"] < step)
    )
    # Saved once more, at its end: checkpoints after every step prove nothing here, and take long.
    (copy_.path / "recipe.json").write_text(json.dumps({**run.recipe(), "save_every": 1000}))
    return copy_


@pytest.mark.soak
def test_a_run_resumed_at_any_step_warns_as_the_whole_one(pictures, tiny, tmp_path):
    recipe = provoked(tiny, COLLAPSES["no sharpening"][0], 10)
    recipe = dataclasses.replace(recipe, save_every=1, keep=0)
    source = open_source(pictures)
    whole = train(recipe, source, Run(tmp_path / "whole"))
    assert 0 < warnings_of(whole)[0]["step"] < 9
    for step in range(1, recipe.steps):
        resumed = cut_back(whole, Run(tmp_path / f"resumed-{step}"), step)
        train(recipe, source, resumed, resume=True)
        assert warnings_of(resumed) == warnings_of(whole), step


@pytest.mark.soak
def test_a_run_stopped_after_every_step_is_watched(pictures, tiny, tmp_path):
    recipe = provoked(tiny, COLLAPSES["no sharpening"][0], 10)
    source = open_source(pictures)
    whole = train(recipe, source, Run(tmp_path / "whole"))
    stopped = Run(tmp_path / "stopped")
    for _ in range(recipe.steps):
        train(recipe, source, stopped, resume=True, max_seconds=1e-9)
    assert stopped.status()["state"] == "finished"
    assert warnings_of(stopped) == warnings_of(whole)


def test_a_warning_said_again_after_a_kill_is_written_once(tmp_path):
    run = Run(tmp_path)
    for step, sentence in [(4, "flat"), (4, "flat"), (5, "flat"), (4, "other")]:
        run.warn(step, sentence)
    assert [(row["step"], row["warning"]) for row in warnings_of(run)] == [
        (4, "flat"),
        (5, "flat"),
        (4, "other"),
    ]


def test_a_checkpoint_of_before_the_monitor_was_kept_is_resumed(pictures, tiny, tmp_path):
    source = open_source(pictures)
    run = train(tiny, source, Run(tmp_path / "run"), max_seconds=1e-9)
    path = run.checkpoint().path / "state.json"
    saved = json.loads(path.read_text())
    del saved["progress"]["monitor"]
    path.write_text(json.dumps(saved))
    assert train(tiny, source, run, resume=True).status()["state"] == "finished"


HEALTHY = {
    "loss": 4.0,
    "grad_norm": 5.0,
    "teacher_entropy": 3.0,
    "kl_uniform": 1.0,
    "used_prototypes": 20.0,
    "feature_std": 0.8,
    "effective_rank": 8.0,
}


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ({}, None),
        ({"teacher_entropy": 5.54, "loss": 5.54}, "uniform"),
        ({"kl_uniform": 5.5}, "one prototype"),
        ({"feature_std": 0.001, "effective_rank": 1.1}, "same features"),
        ({"loss": 5.545}, "stuck"),
    ],
)
def test_each_sign_is_named_once_and_after_a_window(numbers, kind):
    monitor = Monitor(prototypes=256, views=64, steps=WINDOW)
    found = [w for step in range(WINDOW) for w in monitor.see(step, HEALTHY | numbers)]
    found += monitor.see(WINDOW, HEALTHY | numbers)
    kinds = [warning.kind for warning in found]
    assert kinds.count(kind) == (kind is not None)
    assert all(warning.step == WINDOW - 1 for warning in found)


def test_growing_gradients_are_named_but_are_no_collapse():
    monitor = Monitor(prototypes=256, views=64, steps=100)
    numbers = [HEALTHY | {"grad_norm": 1000.0 if step >= 10 else 5.0} for step in range(20)]
    found = [w for step, row in enumerate(numbers) for w in monitor.see(step, row)]
    assert [(w.kind, w.collapse) for w in found] == [("gradients", False)]
