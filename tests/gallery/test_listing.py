"""What galleries there are, told without torch, FAISS or pandas."""

import subprocess
import sys
from pathlib import Path

from dino_core.gallery.listing import gallery_name, list_galleries
from dino_core.gallery.manifest import GalleryInfo


def info(model: str) -> GalleryInfo:
    return GalleryInfo(
        model=model,
        model_hash="0" * 64,
        kind="cls",
        preprocessing={},
        feature_hash="1" * 64,
        data="photos",
        source_hash="2" * 64,
    )


def test_each_state(tmp_path: Path) -> None:
    for name in ("whole", "half", "broken", "strange", ".hidden"):
        (tmp_path / "galleries" / name).mkdir(parents=True)
    info("starter").write(tmp_path / "galleries" / "whole")
    (tmp_path / "galleries" / "half" / "building.json").write_text("{}")
    (tmp_path / "galleries" / "broken" / "gallery.json").write_text("{")
    found = list_galleries(tmp_path)
    assert [(one.name, one.state) for one in found] == [
        ("broken", "damaged"),
        ("half", "half made"),
        ("whole", "whole"),
    ]
    assert found[2].info == info("starter") and found[0].info is None
    assert "cannot be read" in found[0].message


def test_folders_of_one_name_are_two_galleries(tmp_path: Path) -> None:
    folders = [tmp_path / place / "My photos" for place in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = (gallery_name("starter", str(folder)) for folder in folders)
    assert first != second and first == gallery_name("starter", str(folders[0]))
    assert {name[:-6] for name in (first, second)} == {"my-photos-starter-"}
    assert gallery_name("runs/a@20", "scenes:20") == "scenes-20-runs-a-20"


def test_no_folder(tmp_path: Path) -> None:
    assert list_galleries(tmp_path) == []


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from dino_core.gallery import list_galleries, build_status, start_build\n"
        "print(*{'torch', 'faiss', 'pandas', 'umap', 'timm'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""
