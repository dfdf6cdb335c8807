"""What pickers list, and what a visitor may open."""

import json
from pathlib import Path

import pytest

from dino_core import catalog
from dino_core.catalog import entries
from dino_core.errors import UserError
from dino_core.runs import CHECKPOINT_FILES


def add_run(root: Path, name: str, steps: list[int]) -> None:
    run = root / "runs" / name
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for file in CHECKPOINT_FILES:
            (folder / file).write_bytes(b"")


@pytest.fixture(autouse=True)
def _without_starter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(entries, "STARTER", tmp_path / "none.safetensors")


def test_an_empty_root_has_nothing(tmp_path: Path) -> None:
    assert catalog.models(tmp_path) == []
    assert catalog.galleries(tmp_path) == []


def test_the_starter_comes_first_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(tmp_path, "a", [10])
    starter = tmp_path / "starter.safetensors"
    starter.write_bytes(b"")
    monkeypatch.setattr(entries, "STARTER", starter)
    assert catalog.models(tmp_path)[0].spec == "starter"


def test_a_run_is_listed_newest_first_then_by_step(tmp_path: Path) -> None:
    add_run(tmp_path, "a", [10, 200, 30])
    add_run(tmp_path, "empty", [])
    specs = [entry.spec for entry in catalog.models(tmp_path)]
    assert specs == ["runs/a", "runs/a:student", "runs/a@30", "runs/a@10"]


def test_a_long_run_lists_its_latest_checkpoints_only(tmp_path: Path) -> None:
    add_run(tmp_path, "a", list(range(1, 60)))
    specs = [entry.spec for entry in catalog.models(tmp_path)]
    assert len(specs) == 2 + entries.NEWEST_CHECKPOINTS
    assert specs[2] == "runs/a@58"


def test_the_stamp_moves_with_a_running_run_alone(tmp_path: Path) -> None:
    add_run(tmp_path, "a", [10])
    assert entries.model_stamp(tmp_path, "runs/a") == "10"
    add_run(tmp_path / "more", "a", [20])
    (tmp_path / "more/runs/a/checkpoints/step-00000020").rename(
        tmp_path / "runs/a/checkpoints/step-00000020"
    )
    assert entries.model_stamp(tmp_path, "runs/a:student") == "20"
    assert entries.model_stamp(tmp_path, "runs/a@10") == ""
    assert entries.model_stamp(tmp_path, "starter") == ""


def test_a_listed_model_may_be_opened(tmp_path: Path) -> None:
    add_run(tmp_path, "a", [10])
    catalog.check_model(tmp_path, "runs/a", names_allowed=False)


@pytest.mark.parametrize(
    "spec", ["/etc/passwd", "weights.pth", "runs/../secret", "hf:x/y", "runs/b"]
)
def test_what_is_not_listed_is_refused_by_name(tmp_path: Path, spec: str) -> None:
    add_run(tmp_path, "a", [10])
    with pytest.raises(UserError, match="not in the list"):
        catalog.check_model(tmp_path, spec, names_allowed=True)


def test_published_names_need_permission(tmp_path: Path) -> None:
    name = "timm:vit_small_patch16_224.dino"
    catalog.check_model(tmp_path, name, names_allowed=True)
    with pytest.raises(UserError, match="token"):
        catalog.check_model(tmp_path, name, names_allowed=False)


def test_without_any_model_the_sentence_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scripts/train\.py.*--model"):
        catalog.check_model(tmp_path, "", names_allowed=True)


def test_gallery_titles_say_what_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "galleries" / "pets"
    folder.mkdir(parents=True)
    manifest = {
        "version": 1,
        "model": "/somewhere/weights.safetensors",
        "model_hash": "m",
        "kind": "cls",
        "preprocessing": {},
        "feature_hash": "f",
        "data": "scenes",
        "source_hash": "s",
        "generated": True,
        "count": 1234,
    }
    (folder / "gallery.json").write_text(json.dumps(manifest))
    half = tmp_path / "galleries" / "half"
    half.mkdir()
    (half / "building.json").write_text("{}")
    [entry] = catalog.galleries(tmp_path)
    assert catalog.gallery_title(entry) == "pets · 1,234 generated images · weights.safetensors"


def test_public_names_of_galleries_tell_nothing_and_differ(tmp_path: Path) -> None:
    first, second = catalog.gallery_key(tmp_path / "a"), catalog.gallery_key(tmp_path / "b")
    assert first != second
    assert first == catalog.gallery_key(tmp_path / "x" / ".." / "a")
    assert first.isalnum()


def test_examples_are_there_and_credited() -> None:
    examples = catalog.examples()
    assert {"Pagoda", "Dahlia"} <= {example.title for example in examples}
    assert all(example.credit for example in examples)
    assert any(example.path is None for example in examples), "some scenes"


def test_what_an_app_is_started_with_is_there_or_refused(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    for model in (None, "starter", "timm:any", "runs/mine", "runs/mine@10", "runs/mine:student",
                  "weights.pth", str(tmp_path / "weights.pth")):  # fmt: skip
        catalog.check_named(tmp_path, model, None)
    with pytest.raises(UserError, match="runs/none: no such model"):
        catalog.check_named(tmp_path, "runs/none", None)
    with pytest.raises(UserError, match="is not there"):
        catalog.check_named(tmp_path, None, tmp_path / "galleries" / "none")
    half = tmp_path / "galleries" / "half"
    half.mkdir(parents=True)
    (half / "status.json").write_text('{"state": "stopped", "message": ""}')
    with pytest.raises(UserError, match="is half made"):
        catalog.check_named(tmp_path, None, half)
