"""Weight files: round trips of every published layout, strictness, damage, code that never runs."""

import argparse
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dino_core.errors import UserError
from dino_core.models import create_backbone, load_strictly, read_weights, save_weights


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def network(backbone, head, prefix=""):
    """A network as `MultiCropWrapper` names it, behind what distributed training puts first."""
    state = prefixed("backbone.", backbone) | prefixed("head.", head)
    return prefixed(prefix, state)


def full_checkpoint(teacher, student, head):
    """As the published training writes it: its command line and numpy learning rates included."""
    return {
        "student": network(student, head, "module."),
        "teacher": network(teacher, head),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}},
            "param_groups": [
                {"lr": np.float64(5e-4), "weight_decay": np.float64(0.04), "params": [0]}
            ],
        },
        "epoch": 7,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=8, global_crops_scale=(0.4, 1.0)),
        "dino_loss": {"center": torch.zeros(1, 40)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12},
    }


@pytest.fixture
def student(plain):
    return create_backbone(plain.info).vit.state_dict()


# -- ours ---------------------------------------------------------------------------------------


def test_round_trip(tmp_path, tiny, head, same_state):
    path = tmp_path / "teacher.safetensors"
    save_weights(path, tiny.info, tiny.vit.state_dict(), head.state_dict())
    weights = read_weights(path)
    assert weights.info == tiny.info
    assert same_state(weights.backbone, tiny.vit.state_dict())
    assert same_state(weights.head, head.state_dict())


def test_stored_in_fewer_bits(tmp_path, tiny):
    path = tmp_path / "small.safetensors"
    save_weights(path, tiny.info, tiny.vit.state_dict(), dtype=torch.bfloat16)
    weights = read_weights(path)
    assert weights.head is None
    assert {tensor.dtype for tensor in weights.backbone.values()} == {torch.bfloat16}
    assert path.stat().st_size < 2.3 * sum(p.numel() for p in tiny.parameters())


def test_metadata_is_json(tmp_path, tiny):
    path = tmp_path / "a.safetensors"
    save_weights(path, tiny.info, tiny.vit.state_dict())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["architecture"]) == "vit_tiny_patch16_224"
    assert json.loads(metadata["options"]) == {"embed_dim": 48, "depth": 2, "num_heads": 3}


def test_shared_and_strided_tensors_are_written(tmp_path, tiny):
    state = {"a": torch.arange(6.0).reshape(2, 3).T}
    state["b"] = state["a"]
    path = tmp_path / "a.safetensors"
    save_weights(path, tiny.info, state)
    assert torch.equal(read_weights(path).backbone["b"], state["a"])


def test_a_failed_write_leaves_the_old_file(tmp_path, tiny):
    path = tmp_path / "a.safetensors"
    save_weights(path, tiny.info, tiny.vit.state_dict())
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_weights(path, tiny.info, {"a": "no tensor"})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# -- published layouts --------------------------------------------------------------------------


def layouts(backbone, head):
    return {
        "backbone": backbone,
        "module": prefixed("module.", backbone),
        "compiled": prefixed("_orig_mod.module.", backbone),
        "state_dict": {"state_dict": backbone, "epoch": 3},
        "model": {"model": prefixed("module.backbone.", backbone)},
        "backbone_and_head": network(backbone, head, "module."),
        "teacher_alone": {"teacher": network(backbone, head), "args": argparse.Namespace(a=1)},
    }


@pytest.mark.parametrize("layout", list(layouts({}, {})))
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_published_layouts(tmp_path, plain, head, layout, suffix, same_state):
    path = tmp_path / f"weights{suffix}"
    torch.save(layouts(plain.vit.state_dict(), head.state_dict())[layout], path)
    weights = read_weights(path)
    assert weights.info == plain.info
    assert same_state(weights.backbone, plain.vit.state_dict())
    if layout in ("backbone_and_head", "teacher_alone"):
        assert same_state(weights.head, head.state_dict())
    else:
        assert weights.head is None


@pytest.mark.parametrize("legacy", [False, True])
def test_full_checkpoint(tmp_path, plain, student, head, legacy, same_state):
    path = tmp_path / "checkpoint.pth"
    content = full_checkpoint(plain.vit.state_dict(), student, head.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for part, state in (
        (None, plain.vit.state_dict()),
        ("teacher", plain.vit.state_dict()),
        ("student", student),
    ):
        weights = read_weights(path, part)
        assert same_state(weights.backbone, state)
        assert same_state(weights.head, head.state_dict())


def test_numpy_scalars_under_their_old_name(tmp_path, plain):
    """Checkpoints written before numpy 2 call the constructor numpy.core.multiarray.scalar."""
    path = tmp_path / "checkpoint.pth"
    content = {"teacher": plain.vit.state_dict(), "lr": np.float64(0.5)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    new, old = b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"
    written = path.read_bytes()
    if new in written:
        path.write_bytes(written.replace(new, old))
    assert old in path.read_bytes()
    assert read_weights(path).info == plain.info


def test_safetensors_from_elsewhere(tmp_path, plain, same_state):
    path = tmp_path / "model.safetensors"
    save_file(plain.vit.state_dict(), path, metadata={"format": "pt"})
    weights = read_weights(path)
    assert weights.info == plain.info
    assert same_state(weights.backbone, plain.vit.state_dict())


def test_new_names_of_weight_norm(tmp_path, plain, head, same_state):
    state = dict(head.state_dict())
    state["last_layer.parametrizations.weight.original0"] = state.pop("last_layer.weight_g")
    state["last_layer.parametrizations.weight.original1"] = state.pop("last_layer.weight_v")
    path = tmp_path / "a.pth"
    torch.save(network(plain.vit.state_dict(), state), path)
    assert same_state(read_weights(path).head, head.state_dict())


# -- strictness ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_listed(plain):
    state = dict(plain.vit.state_dict())
    del state["norm.bias"]
    state["stranger"] = torch.zeros(1)
    state["cls_token"] = torch.zeros(1, 1, 7)
    with pytest.raises(UserError) as raised:
        load_strictly(plain.vit, state, "a.pth")
    assert str(raised.value) == (
        "a.pth: the weights do not fit: missing: norm.bias; unknown: stranger; "
        "of another shape: cls_token is 1x1x7 instead of 1x1x192"
    )


def test_a_refused_state_changes_nothing(plain, same_state):
    before = {name: tensor.clone() for name, tensor in plain.vit.state_dict().items()}
    with pytest.raises(UserError):
        load_strictly(
            plain.vit, {name: tensor + 1 for name, tensor in list(before.items())[1:]}, "a"
        )
    assert same_state(plain.vit.state_dict(), before)


def test_many_misfits_are_counted(plain):
    with pytest.raises(UserError, match=r"cls_token.* and \d+ more"):
        load_strictly(plain.vit, {}, "a.pth")


def test_keys_of_neither_backbone_nor_head(tmp_path, plain):
    path = tmp_path / "a.pth"
    torch.save(prefixed("backbone.", plain.vit.state_dict()) | {"ibot.a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"a.pth: besides backbone and head it holds ibot\.a"):
        read_weights(path)


def test_a_part_that_is_not_there(tmp_path, plain):
    path = tmp_path / "a.pth"
    torch.save({"teacher": plain.vit.state_dict()}, path)
    with pytest.raises(UserError, match="holds no student, only the teacher"):
        read_weights(path, "student")
    torch.save(plain.vit.state_dict(), path)
    with pytest.raises(UserError, match="holds one network, there is no student to choose"):
        read_weights(path, "student")


# -- damage -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"hello, I am a text file\n", b"\x80\x04nothing"])
def test_not_weights_at_all(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: not a whole") as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_cut_short(tmp_path, plain, suffix, share):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(plain.vit.state_dict(), path)
    else:
        save_weights(path, plain.info, plain.vit.state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"not a whole .* copy or download it again"):
        read_weights(path)


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        read_weights(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    "change", [{"patch_size": '"x"'}, {"pos_embed": '"bad"'}, {"mean": "nope"}]
)
def test_a_broken_description(tmp_path, tiny, change):
    path = tmp_path / "a.safetensors"
    save_file(prefixed("backbone.", tiny.vit.state_dict()), path, tiny.info.to_metadata() | change)
    with pytest.raises(UserError, match="its description of the model cannot be read"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds: nothing"),
        ({"epoch": 3, "lr": 0.1}, "holds: epoch, lr"),
        (
            {"fc.weight": torch.zeros(3)},
            "not a ViT, .* in a known layout: cls_token, pos_embed",
        ),
    ],
)
def test_other_contents(tmp_path, content, said):
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=said):
        read_weights(path)


# -- code ---------------------------------------------------------------------------------------


class Payload:
    """What an attacker would pickle: loading it plainly makes a folder."""

    def __init__(self, victim):
        self.victim = str(victim)

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, plain, how):
    victim = tmp_path / "victim"
    content = {"teacher": plain.vit.state_dict(), "args": Payload(victim)}
    path = tmp_path / "evil.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"args": Payload(victim)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(UserError, match=r"evil\.pth: (refused|not a whole)") as raised:
        read_weights(path)
    if how != "pickle":
        assert f"{os.mkdir.__module__}.mkdir" in str(raised.value)
    assert not victim.exists()


def test_an_unknown_class_is_named(tmp_path, plain):
    path = tmp_path / "a.pth"
    torch.save({"model": plain.vit.state_dict(), "when": re.compile("x")}, path)
    with pytest.raises(UserError, match=r"refused, it asks to run or build re\._compile"):
        read_weights(path)


def test_the_command_line_class_is_allowed_nowhere_else(tmp_path, plain):
    path = tmp_path / "a.pth"
    torch.save({"teacher": plain.vit.state_dict(), "args": argparse.Namespace(a=1)}, path)
    read_weights(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_namespace_cannot_smuggle_code(tmp_path, plain):
    victim = tmp_path / "victim"
    path = tmp_path / "a.pth"
    args = argparse.Namespace(a=Payload(victim))
    torch.save({"teacher": plain.vit.state_dict(), "args": args}, path)
    with pytest.raises(UserError, match="refused"):
        read_weights(path)
    assert not victim.exists()
