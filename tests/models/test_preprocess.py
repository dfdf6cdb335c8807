"""The published evaluation transform, at 224 px and in proportion."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dino_core.errors import UserError
from dino_core.models import ModelInfo
from dino_core.models.preprocess import normalize, normalized, preprocess, resize_side

INFO = ModelInfo("vit_small_patch16_224", 16, 224)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(300, 500), (500, 301), (224, 224), (40, 60), (1, 9)]
)
def test_published_transform(height, width):
    published = transforms.Compose(
        [
            transforms.Resize(256, interpolation=3),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image = noise(height, width)
    theirs = published(Image.fromarray(image))
    torch.testing.assert_close(preprocess(image, INFO), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("native", "side"), [(224, 256), (64, 73), (518, 592), (32, 37)])
def test_in_proportion(native, side):
    assert resize_side(native) == side


def test_a_very_long_strip_does_not_fill_memory():
    image = np.repeat(noise(1, 1), 300_000, axis=1)
    x = preprocess(image, INFO)
    assert x.shape == (3, 224, 224)
    torch.testing.assert_close(x, x[:, :1, :1].expand_as(x))


def test_normalize_keeps_the_size_and_the_image():
    image = noise(10, 7)
    image.flags.writeable = False
    x = normalize(
        image, ModelInfo("vit_tiny_patch16_224", 8, 16, mean=(0, 0.5, 1), std=(1, 0.5, 2))
    )
    assert x.shape == (3, 10, 7)
    assert x.dtype == torch.float32
    wanted = torch.tensor(image[3, 2] / 255.0, dtype=torch.float32)
    torch.testing.assert_close(
        x[:, 3, 2], (wanted - torch.tensor([0, 0.5, 1])) / torch.tensor([1, 0.5, 2])
    )


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4)])
def test_other_channels_are_refused(shape):
    with pytest.raises(UserError, match="for a model of 3 channels"):
        normalize(np.zeros(shape, np.uint8), INFO)


@pytest.mark.parametrize("channels", [3, 2])
def test_a_batch_is_normalized_to_the_same_bits(channels):
    info = ModelInfo(
        "vit_tiny_patch16_224",
        8,
        16,
        channels,
        (0.4, 0.5, 0.6)[:channels],
        (0.1, 0.2, 0.3)[:channels],
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, channels), dtype=np.uint8)
    alone = torch.stack([normalize(image, info) for image in images])
    assert torch.equal(normalized(torch.from_numpy(images), info), alone)
