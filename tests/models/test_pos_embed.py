"""Position embeddings at other sizes: the published numbers, timm's, and the plain twin."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from dino_core.models.pos_embed import resample_pos_embed, resize_matrix

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "backbone.npz")
SIZES = [tuple(size) for size in GOLDEN["sizes"].tolist()]

sides = st.integers(1, 20)


def published(pos_embed, native, grid):
    """The plain twin: one bicubic resize of the whole table by the published scale."""
    if native == grid:
        return pos_embed
    table = pos_embed[:, 1:].reshape(1, *native, -1).permute(0, 3, 1, 2)
    scale = tuple((g + 0.1) / n for g, n in zip(grid, native, strict=True))
    resized = F.interpolate(table, scale_factor=scale, mode="bicubic")
    return torch.cat([pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_published_numbers(height, width):
    table = torch.from_numpy(GOLDEN["state.pos_embed"])
    ours = resample_pos_embed(table, (14, 14), (height // 16, width // 16), prefix=1)
    np.testing.assert_allclose(ours, GOLDEN[f"posembed_{height}x{width}"], rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(native=st.integers(2, 20), grid=st.tuples(sides, sides))
def test_equals_the_plain_twin(native, grid):
    table = torch.randn(1, 1 + native**2, 6, generator=torch.Generator().manual_seed(native))
    ours = resample_pos_embed(table, (native, native), grid, prefix=1)
    torch.testing.assert_close(ours, published(table, (native, native), grid), atol=5e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(native=st.integers(2, 20), grid=st.tuples(sides, sides), prefix=st.sampled_from([0, 1, 5]))
def test_timm_mode_equals_timm(native, grid, prefix):
    table = torch.randn(1, prefix + native**2, 6, generator=torch.Generator().manual_seed(native))
    ours = resample_pos_embed(table, (native, native), grid, prefix, "timm")
    theirs = resample_abs_pos_embed(table, list(grid), [native, native], prefix)
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


def test_the_two_ways_differ_as_measured():
    """18-22 % of a smooth table at 96 px: the reason for having both."""
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    waves = [torch.sin(f * x + g * y) for f in (0.6, 1.2, 1.8) for g in (0.6, 1.2, 1.8)]
    table = torch.cat([torch.zeros(1, 1, 9), torch.stack(waves, -1).reshape(1, 196, 9)], dim=1)
    dino = resample_pos_embed(table, (14, 14), (6, 6), 1, "dino")
    timm = resample_pos_embed(table, (14, 14), (6, 6), 1, "timm")
    assert (dino - timm).norm() / dino.norm() > 0.1


@pytest.mark.parametrize("mode", ["dino", "timm"])
@pytest.mark.parametrize("wanted", [1, 3, 14, 61])
def test_a_constant_table_stays_constant(mode, wanted):
    sums = resize_matrix(14, wanted, mode, torch.device("cpu")).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(wanted), atol=1e-6, rtol=0)


def test_gradient_is_the_plain_twins():
    table = torch.randn(1, 17, 6, requires_grad=True)
    weight = torch.randn(1, 7, 6)
    (ours,) = torch.autograd.grad(
        (resample_pos_embed(table, (4, 4), (2, 3), 1) * weight).sum(), table
    )
    (theirs,) = torch.autograd.grad((published(table, (4, 4), (2, 3)) * weight).sum(), table)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_autocast_does_not_coarsen_it():
    table = torch.randn(1, 17, 6)
    plain = resample_pos_embed(table, (4, 4), (3, 3), 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample_pos_embed(table, (4, 4), (3, 3), 1), plain)
