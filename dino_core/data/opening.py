"""`open_source`: one spelling for every kind of image collection."""

import difflib
import os
from pathlib import Path

from dino_core.data.channels import NEEDS_TIFFFILE, has_tifffile
from dino_core.data.decode import looks_like_image
from dino_core.data.folder import open_file, open_folder
from dino_core.data.from_hub import open_hub
from dino_core.data.from_torchvision import open_torchvision
from dino_core.data.naming import by_name
from dino_core.data.scenes import open_scenes
from dino_core.data.source import Source
from dino_core.data.table import TABLE_ENDINGS, open_table
from dino_core.data.tar import open_tar
from dino_core.errors import UserError

KNOWN = (
    "a folder of images, a .csv or .parquet with a path column, a .tar, torchvision:NAME, "
    "hf:OWNER/NAME, or scenes"
)
TRIED = 1000  # images whose names are looked at for TIFFs
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}


def open_source(spec: str | Path, channels: int = 3) -> Source:
    """Open a collection of images of `channels` channels (3 is RGB):

    - a folder, nested or flat; folders in it are classes;
    - a `.csv`, `.tsv` or `.parquet` with a column of paths; columns `label` and `split` are known;
    - an uncompressed `.tar`;
    - one image file;
    - `torchvision:imagenette`, `torchvision:stl10:unlabeled`: what torchvision can download;
    - `hf:owner/name`, `hf:owner/name:test`: a data set of the Hugging Face Hub;
    - `scenes`, `scenes:500`, `scenes:2000-2600`: generated (`./scenes` is a folder of that name).

    Raises `UserError` with one sentence for whatever is none of these.
    """
    if channels < 1:
        raise UserError(f"{channels} channels: an image has 1 or more")
    text = os.fspath(spec).strip()
    if not text:
        raise UserError(f"no data given; name {KNOWN}")
    if text == "scenes" or text.startswith("scenes:"):
        return _only_rgb(open_scenes(text), channels)
    if text.startswith("torchvision:"):
        return open_torchvision(text, channels)
    if text.startswith("hf:"):
        return open_hub(text, channels)
    if text.startswith(("http:", "https:")):
        raise UserError(f"{text}: not known as data; name {KNOWN}")
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return _with_channels(open_folder(text, path, channels))
        if path.is_file():
            return _with_channels(_open_file(text, path, channels))
        missing = not path.exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{text}: cannot be read ({reason})") from None
    if missing:
        raise UserError(f"{text}: no such file or folder{_guess(text, path)}")
    raise UserError(f"{text}: neither a file nor a folder; name {KNOWN}")


def _only_rgb(source: Source, channels: int) -> Source:
    if channels != 3:
        raise UserError(f"{source.spec}: its images are RGB, they have no {channels} channels")
    return source


def _with_channels(source: Source) -> Source:
    """The source; a `UserError` where its images need a package that is missing."""
    if source.channels in (1, 3) or has_tifffile():
        return source
    tried = range(min(len(source), TRIED))
    if any(source.ids[i].lower().endswith((".tif", ".tiff")) for i in tried):
        raise UserError(f"{source.spec}: {NEEDS_TIFFFILE}")
    return source


def _open_file(text: str, path: Path, channels: int) -> Source:
    with path.open("rb") as file:
        head = file.read(512)
    ending = path.suffix.lower()
    packing = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if packing:
        raise UserError(
            f"{text}: is compressed ({packing}), so its images cannot be read at random; "
            "unpack it and name the folder"
        )
    if ending in TABLE_ENDINGS:
        return open_table(text, path, channels)
    if ending == ".tar" or head[257:262] == b"ustar":
        return open_tar(text, path, channels)
    if by_name(path.name, channels) or looks_like_image(head):
        return open_file(text, path, channels)
    raise UserError(f"{text}: not known as data; name {KNOWN}")


def _guess(text: str, path: Path) -> str:
    """For a typo: the name that was probably meant, as the end of a sentence."""
    if difflib.get_close_matches(text.lower(), ["scenes"], cutoff=0.75):
        return "; did you mean scenes?"
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        near = difflib.get_close_matches(path.name, sorted(os.listdir(parent)), n=1)
    except OSError:
        near = []
    return f"; did you mean {parent / near[0]}?" if near else f"; name {KNOWN}"
