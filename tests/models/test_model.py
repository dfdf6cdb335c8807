"""`load_model`: every spelling, the hash, the untrained twin, what an app is told."""

import hashlib
import json

import pytest
import torch

from dino_core.errors import UserError
from dino_core.models import create_backbone, load_model, model, save_weights, untrained


@pytest.fixture
def run(tmp_path, plain, head):
    """`runs/a` with two whole checkpoints and one that a copy left incomplete."""
    saved = {}
    folder = tmp_path / "runs" / "a"
    for step in (500, 1000):
        for part in ("student", "teacher"):
            torch.manual_seed(step + len(part))
            state = create_backbone(plain.info).vit.state_dict()
            path = folder / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors"
            save_weights(path, plain.info, state, head.state_dict())
            saved[step, part] = state
        (path.parent / "optimizer.safetensors").touch()
        (path.parent / "state.json").write_text("{}")
    (folder / "checkpoints" / "step-00001500").mkdir()
    (folder / "recipe.json").write_text("{}")
    return saved


@pytest.mark.parametrize(
    ("spec", "step", "part"),
    [
        ("runs/a", 1000, "teacher"),
        ("runs/a@500", 500, "teacher"),
        ("runs/a:student", 1000, "student"),
        ("runs/a@500:student", 500, "student"),
        ("runs/a@1000:teacher", 1000, "teacher"),
    ],
)
def test_runs(tmp_path, run, spec, step, part, same_state):
    loaded = load_model(spec, device="cpu", root=tmp_path)
    assert same_state(loaded.backbone.vit.state_dict(), run[step, part])
    assert loaded.spec == spec


def test_root_is_the_current_folder_unless_given(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = load_model("runs/a", device="cpu")
    absolute = load_model(str(tmp_path / "runs" / "a"), device="cpu", root="/")
    assert relative.hash == absolute.hash


def test_files(tmp_path, run, plain, same_state):
    path = "runs/a/checkpoints/step-00000500/student.safetensors"
    loaded = load_model(path, device="cpu", root=tmp_path)
    assert same_state(loaded.backbone.vit.state_dict(), run[500, "student"])
    torch.save(
        {"student": plain.vit.state_dict(), "teacher": run[500, "teacher"]}, tmp_path / "b.pth"
    )
    loaded = load_model(tmp_path / "b.pth", device="cpu")
    assert same_state(loaded.backbone.vit.state_dict(), run[500, "teacher"])
    loaded = load_model("b.pth:student", device="cpu", root=tmp_path)
    assert same_state(loaded.backbone.vit.state_dict(), plain.vit.state_dict())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("a", r"a: no such model in .*; did you mean runs/a\?"),
        ("runs/b", "runs/b: no such model"),
        ("runs/a@700", r"no whole checkpoint at step 700 \(there are: 500, 1000\)"),
        ("runs", "runs: a folder, but not a run"),
        ("notes.txt", "not a weights file; those end in .safetensors"),
        ("gone.pth", "gone.pth: no such file"),
        ("", "the model has no name"),
    ],
)
def test_unknown_models(tmp_path, run, spec, said):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=said):
        load_model(spec, device="cpu", root=tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="new: no checkpoint yet"):
        load_model("runs/new", device="cpu", root=tmp_path)


def test_weights_that_do_not_fit_their_description(tmp_path, plain):
    state = dict(plain.vit.state_dict())
    del state["norm.weight"]
    save_weights(tmp_path / "a.safetensors", plain.info, state)
    with pytest.raises(
        UserError, match=r"a\.safetensors: the weights do not fit: missing: norm\.weight"
    ):
        load_model("a.safetensors", device="cpu", root=tmp_path)


def test_the_starter(tmp_path, plain, monkeypatch):
    """Under any root, even beside a folder of that name."""
    (tmp_path / "starter").mkdir()
    monkeypatch.setattr(model, "STARTER", tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match="starter: its weights are missing"):
        load_model("starter", device="cpu", root=tmp_path)
    save_weights(model.STARTER, plain.info, plain.vit.state_dict(), dtype=torch.bfloat16)
    loaded = load_model("starter", device="cpu", root=tmp_path)
    assert {p.dtype for p in loaded.backbone.parameters()} == {torch.float32}


def test_a_loaded_model_is_frozen(tmp_path, run):
    loaded = load_model("runs/a", device="cpu", root=tmp_path)
    assert not any(p.requires_grad for p in loaded.backbone.parameters())
    assert not any(module.training for module in loaded.backbone.modules())


def test_loading_leaves_the_global_random_state(tmp_path, run):
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    untrained(load_model("runs/a", device="cpu", root=tmp_path))
    assert torch.equal(torch.randn(2), wanted)


# -- hash ---------------------------------------------------------------------------------------


def test_hash_is_that_of_names_shapes_and_values(tmp_path, tiny):
    path = tmp_path / "a.safetensors"
    save_weights(path, tiny.info, tiny.vit.state_dict())
    digest = hashlib.sha256()
    for name in sorted(tiny.vit.state_dict()):
        tensor = tiny.vit.state_dict()[name]
        digest.update(f"{name}:{tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert load_model(path, device="cpu").hash == digest.hexdigest()


def test_hash_ignores_the_file_but_not_the_weights(tmp_path, plain):
    state = plain.vit.state_dict()
    save_weights(tmp_path / "a.safetensors", plain.info, dict(reversed(state.items())))
    torch.save(
        {"teacher": {f"module.backbone.{k}": v for k, v in state.items()}}, tmp_path / "b.pth"
    )
    state["norm.bias"] = state["norm.bias"] + 1e-6
    save_weights(tmp_path / "c.safetensors", plain.info, state)
    a, b, c = (
        load_model(tmp_path / f, device="cpu").hash
        for f in ("a.safetensors", "b.pth", "c.safetensors")
    )
    assert a == b != c


def test_hash_of_weights_stored_in_fewer_bits(tmp_path, plain):
    rounded = {name: t.bfloat16().float() for name, t in plain.vit.state_dict().items()}
    save_weights(tmp_path / "short.safetensors", plain.info, rounded, dtype=torch.bfloat16)
    save_weights(tmp_path / "long.safetensors", plain.info, rounded)
    short, long = (
        load_model(tmp_path / f"{f}.safetensors", device="cpu") for f in ("short", "long")
    )
    assert short.hash == long.hash


# -- beside the weights -------------------------------------------------------------------------


def test_untrained(tmp_path, run):
    loaded = load_model("runs/a", device="cpu", root=tmp_path)
    first, again, other = (untrained(loaded, seed) for seed in (0, 0, 1))
    assert first.info == loaded.info
    assert first.hash == again.hash
    assert len({loaded.hash, first.hash, other.hash}) == 3
    assert "random init" in first.spec


def test_describe_is_json_for_an_app(tmp_path, run):
    described = load_model("runs/a", device="cpu", root=tmp_path).describe()
    assert json.loads(json.dumps(described)) == described
    assert (described["embed_dim"], described["depth"], described["heads"]) == (192, 2, 3)
    assert described["parameters"] == 930_624
    assert described["license"] == "unknown"


def test_images_go_in(tmp_path, run, image):
    loaded = load_model("runs/a", device="cpu", root=tmp_path)
    x = torch.stack([loaded.preprocess(image), loaded.preprocess(image[::-1])])
    assert loaded.backbone(x).shape == (2, 192)
    assert loaded.normalize(image).shape == (3, 50, 70)
