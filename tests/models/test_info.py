"""ModelInfo: what it refuses, and that metadata gives it back."""

import dataclasses

import pytest

from dino_core.errors import UserError
from dino_core.models import ModelInfo


def test_metadata_gives_it_back():
    info = ModelInfo(
        "vit_small_patch14_reg4_dinov2",
        14,
        56,
        2,
        (0.1, 0.2),
        (1.0, 2.0),
        "timm",
        {"depth": 3},
        "mit",
    )
    metadata = info.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert ModelInfo.described_by(metadata)
    assert ModelInfo.from_metadata(metadata) == info


def test_fields_added_later_have_their_defaults():
    metadata = ModelInfo("vit_tiny_patch16_224", 16, 224, license="mit").to_metadata()
    del metadata["license"]
    assert ModelInfo.from_metadata(metadata) == ModelInfo("vit_tiny_patch16_224", 16, 224)


def test_a_missing_field_is_a_value_error():
    metadata = ModelInfo("vit_tiny_patch16_224", 16, 224).to_metadata()
    del metadata["architecture"]
    with pytest.raises(ValueError, match="architecture"):
        ModelInfo.from_metadata(metadata)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_other_files_are_not_described(metadata):
    assert not ModelInfo.described_by(metadata)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 225}, "225 px is not made of whole patches of 16 px"),
        ({"patch_size": 0}, "not made of whole patches"),
        ({"channels": 4}, "4 channels need as many means"),
        ({"pos_embed": "bilinear"}, "pos_embed is `dino` or `timm`"),
    ],
)
def test_refused(change, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(ModelInfo("vit_tiny_patch16_224", 16, 224), **change)
