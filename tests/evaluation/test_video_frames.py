"""What frames of videos are fed at, and their patch tokens, by plain steps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dino_core.evaluation.video_frames import fed_size, patch_features, resized
from dino_core.models import Model, ModelInfo, create_backbone


@pytest.mark.parametrize(
    ("height", "width", "size", "patch", "fed"),
    [
        (480, 854, 480, 16, (480, 832)),  # DAVIS
        (480, 854, 480, 8, (480, 832)),
        (854, 480, 480, 8, (832, 480)),
        (1080, 1920, 480, 16, (480, 832)),
        (480, 910, 480, 8, (480, 896)),
        (480, 480, 480, 8, (480, 448)),
        (500, 480, 480, 8, (448, 480)),
        (480, 854, 480, 14, (476, 840)),  # 34 patches; steps of 56 px
        (480, 854, 240, 8, (240, 416)),  # steps of 32 px
        (480, 854, 96, 8, (96, 168)),  # of 8
        (480, 854, 100, 16, (96, 176)),
        (48, 64, 48, 8, (48, 64)),
        (480, 854, 480, 1, (480, 832)),  # no patches
    ],
)
def test_what_frames_are_fed_at(height, width, size, patch, fed):
    assert fed_size(height, width, size, patch) == fed


def test_frames_are_resized_bilinearly_as_published():
    """Pixel centers at halves, no antialiasing, rounded: `np.interp` along each side."""
    image = np.random.default_rng(0).integers(0, 256, (30, 53, 3), np.uint8)

    def along(values: np.ndarray, axis: int, length: int) -> np.ndarray:
        at = (np.arange(length) + 0.5) * values.shape[axis] / length - 0.5
        known = np.arange(values.shape[axis])
        return np.apply_along_axis(lambda line: np.interp(at, known, line), axis, values)

    expected = along(along(image.astype(float), 0, 32), 1, 48)
    assert abs(resized(image, 32, 48).astype(float) - expected).max() <= 0.5 + 1e-3
    assert resized(image, 30, 53) is image
    # A third as large, stripes become even gray; without antialiasing they would stay stripes.
    stripes = np.tile(np.array([0, 255], np.uint8)[:, None], (60, 60, 3))
    assert stripes.shape == (60, 120, 3)
    assert abs(resized(stripes, 20, 40)[:, 2:-2].astype(float) - 127.5).max() < 30


def test_the_published_deviation_of_red():
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    info = ModelInfo("vit_tiny_patch16_224", 8, 64, options=options)
    model = Model(create_backbone(info), "tiny", torch.device("cpu"))
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    right, published = (
        patch_features(model, frame, 48, 64, as_published=wrong) for wrong in (False, True)
    )
    x_HWC = (frame / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.228, 0.224, 0.225])
    with torch.no_grad():
        tokens = model.backbone.tokens(torch.from_numpy(x_HWC).permute(2, 0, 1)[None].float())
    expected = F.normalize(tokens[0, 1:], dim=1).reshape(6, 8, -1)
    torch.testing.assert_close(published, expected, atol=1e-5, rtol=0)
    assert (right - published).abs().max() > 1e-4
