"""The training benchmark: its counts, its plain twin, and a smallest run."""

from dataclasses import replace

import pytest
import torch

from dino_core.augment import MultiCrop
from dino_core.benchmarks.published import PublishedViews, published_state, published_step
from dino_core.benchmarks.train import RECIPES, Setting, _measured, flops_per_image, measure
from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.training.feed import Batch, FromSource, ViewDataset
from dino_core.training.recipe import BackboneConfig, HeadConfig, Recipe
from dino_core.training.state import create_state
from dino_core.training.step import Schedules, train_step

CPU = torch.device("cpu")
TINY = Recipe(
    backbone=BackboneConfig("test_vit", 16, 32, drop_path=0.0),
    crops=MultiCrop(global_size=32, local_size=16, local_count=2),
    head=HeadConfig(64, hidden_dim=32, bottleneck_dim=16),
    batch_size=4,
    threads=1,
    epochs=1,
)


@pytest.mark.parametrize(
    ("name", "width", "gflops"),
    [
        ("ViT-S/16 224+96", 384, 113.8),
        ("ViT-B/16 224+96", 768, 435.6),
        ("ViT-T/16 224+96", 192, 31.4),
        ("ViT-T/8 64+32", 192, 9.5),
    ],
)
def test_operations_are_counted_as_in_the_literature(name, width, gflops):
    assert flops_per_image(RECIPES[name], width, 12) / 1e9 == pytest.approx(gflops, rel=0.01)


def test_forward_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    recipe = replace(TINY, backbone=BackboneConfig("vit_tiny_patch16_224", 16, 32))
    student = create_state(recipe, CPU).student
    views = [torch.randn(8, 3, 32, 32), torch.randn(8, 3, 16, 16)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.cat([student.head(student.backbone(images)) for images in views])
    # A step counts 2 global views four times and the local ones three times.
    shape = student.backbone.embed_dim, student.backbone.depth
    without_local = replace(recipe, crops=replace(TINY.crops, local_count=0))
    of_global = flops_per_image(without_local, *shape)
    forward = of_global / 4 + (flops_per_image(recipe, *shape) - of_global) / 3
    assert counter.get_total_flops() / 4 == pytest.approx(forward, rel=0.02)


def test_the_plain_twin_sees_the_same_views_and_takes_the_same_step():
    recipe = replace(TINY, precision="fp32")
    source, info = open_source("scenes:4"), recipe.backbone.info()
    made = ViewDataset(FromSource(source), recipe.crops, recipe.seed)
    batch = made.__getitems__([(0, i) for i in range(4)])
    assert isinstance(batch, Batch)
    ours = batch.views(info, CPU)
    images = [PublishedViews(source, recipe)[i] for i in range(4)]
    theirs = [torch.stack(view) for view in zip(*images, strict=True)]
    for our_view, their_view in zip(ours, (theirs[:2], theirs[2:]), strict=True):
        # Pillow rounds after every operation; a threshold (solarize) may then go the other way.
        assert (our_view - torch.cat(their_view)).abs().mean() < 2 / 255 / min(info.std)

    settings = Schedules(replace(recipe, steps=1000), steps_per_epoch=10).settings(200)
    fast, plain = create_state(recipe, CPU), published_state(recipe, CPU)
    groups = [torch.cat(theirs[:2]), torch.cat(theirs[2:])]
    loss = train_step(fast, [groups], settings).loss.item()
    assert loss == pytest.approx(published_step(plain, theirs, settings), abs=1e-5)
    for our_net, their_net in ((fast.student, plain.student), (fast.teacher, plain.teacher)):
        for a, b in zip(our_net.parameters(), their_net.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(fast.center, plain.center)


def test_a_smallest_run_says_all_that_is_promised():
    source = open_source("scenes:4")
    result = _measured(Setting("tiny", TINY, source, CPU, workers=0, steps=1), 1, plain=True)
    assert result.images_per_second > 0
    assert result.ratio_to_plain > 0
    assert 0 < result.share_of_limit < 1
    assert set(result.phases) == {
        "decode and crop", "copy and color", "teacher", "student", "head", "loss", "backward",
        "clip", "optimizer", "EMA", "rest of the step",
    }  # fmt: skip


def test_a_recipe_that_is_not_known_is_a_sentence():
    with pytest.raises(UserError, match="no recipe is named 'ViT-X'"):
        measure(only=["ViT-X"])
