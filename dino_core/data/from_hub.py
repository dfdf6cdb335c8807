"""`hf:OWNER/NAME[:SPLIT]`: a data set of the Hugging Face Hub, by its name.

Read are the repository's Parquet files with an image column of {bytes, path}, the layout in which
the Hub keeps image data sets. They are downloaded by huggingface_hub, into its own cache (`HF_HOME`
and `HF_HUB_OFFLINE` mean what they always do; without a network the cached files are used). A
Parquet file cannot be read at random, so the images are copied once, as they are, into one file in
our cache (`DINO_CACHE`, else `~/.cache/dino-core`), in `hf/`.

Classes are those that the file's schema names. Other plain columns are metadata.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_core.data.cache import alone, cache_folder
from dino_core.data.decode import BadImage
from dino_core.data.naming import label_values
from dino_core.data.packed import Packed
from dino_core.data.source import Names, checked
from dino_core.data.table import LABEL_COLUMNS
from dino_core.errors import UserError
from dino_core.files import read_json, whole_folder, write_json

if TYPE_CHECKING:
    import pyarrow as pa

CONVERTED = "refs/convert/parquet"  # where the Hub keeps its own copy as Parquet
SHARD = re.compile(r"(?P<split>[^/]+?)-(?P<number>\d{5})-of-(?P<count>\d{5})[^/]*\.parquet")
ROWS = 64  # read at once: a few MB of images
FORMAT = 1  # of the copy in the cache


class HubImages(Packed):
    """Images of a data set of the Hub, in the order of its files."""

    container = "copy in the cache"

    def __init__(self, spec: str, folder: Path, channels: int = 3) -> None:
        import pandas as pd

        info = read_json(folder / "info.json")
        places = np.load(folder / "places.npy", allow_pickle=False)
        ids = Names(f"{split}/{row:06d}" for split, n in info["splits"] for row in range(n))
        super().__init__(spec, folder / "images.bin", ids, places[:, 0].copy(), places[:, 1].copy())
        self.channels, self.classes = channels, info["classes"]
        self.splits = np.repeat(
            np.array([split for split, _ in info["splits"]], dtype=object),
            [n for _, n in info["splits"]],
        )
        if (folder / "labels.npy").is_file():
            self.labels = np.load(folder / "labels.npy", allow_pickle=False)
        if (folder / "metadata.parquet").is_file():
            self.metadata = pd.read_parquet(folder / "metadata.parquet")

    def read(self, i: int) -> bytes:
        """The bytes of image `i`'s file; raises `BadImage`."""
        if self._sizes[checked(i, len(self))] == 0:
            raise BadImage("the data set holds no bytes for this image")
        return super().read(i)


def open_hub(spec: str, channels: int = 3) -> HubImages:
    """Open `hf:OWNER/NAME[:SPLIT]`; a `UserError` where it cannot be had or read.

    Without a split it is `train`, where there is one, else all of them. Of a data set with several
    configurations one has to be named: `hf:OWNER/NAME:CONFIGURATION/SPLIT`.
    """
    name, _, wanted = spec.removeprefix("hf:").partition(":")
    if name.startswith(("/", "./", "../", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"{spec}: no such folder")
        shards = choose(spec, _parquets(folder), wanted)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        folder, shards = _download(spec, name, wanted)
    else:
        raise UserError(f"{spec}: write hf:OWNER/NAME or hf:OWNER/NAME:SPLIT")
    title = f"{name.strip('/.~').replace('/', '--')}-{_key(folder, shards)}"
    place = cache_folder("hf", title[-100:])
    with alone(place.with_name(f".{place.name}.lock")):
        if not place.is_dir():
            _copy(spec, folder, shards, place)
    return HubImages(spec, place, channels)


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set."""

    name: str
    """In the repository."""
    configuration: str
    split: str
    count: int
    """Of the files of this split; 0 where the name does not say."""


def choose(spec: str, names: list[str], wanted: str) -> list[Shard]:
    """The files of one split (of all, where none is named and none is `train`), in order."""
    found = [_shard(name) for name in sorted(names)]
    if not found:
        raise UserError(
            f"{spec}: holds no Parquet files; download it, unpack it and name the folder"
        )
    configuration, _, split = wanted.rpartition("/")
    if configuration:
        found = [shard for shard in found if shard.configuration == configuration]
    known = sorted({shard.split for shard in found})
    if not split and "train" in known:
        split = "train"
    chosen = [shard for shard in found if split in ("", shard.split)]
    if not chosen:
        raise UserError(f"{spec}: there is no {wanted}; there are: {', '.join(known) or 'none'}")
    configurations = sorted({shard.configuration for shard in chosen})
    if len(configurations) > 1:
        some = ", ".join(configurations[:8])
        raise UserError(
            f"{spec}: has several configurations ({some}); name one, such as "
            f"{spec.removesuffix(':' + wanted)}:{configurations[0]}/{chosen[0].split}"
        )
    for part in {shard.split for shard in chosen}:
        shards = [shard for shard in chosen if shard.split == part]
        if shards[0].count > len(shards):
            raise UserError(
                f"{spec}: only {len(shards)} of {shards[0].count} files are here; "
                "connect to the internet to download the rest"
            )
    return chosen


def _shard(name: str) -> Shard:
    """What a file's name says: `data/train-00000-of-00002.parquet`, `default/train/0000.parquet`,
    `train.parquet`."""
    folder, _, file = name.rpartition("/")
    if match := SHARD.fullmatch(file):
        return Shard(name, folder or "data", match["split"], int(match["count"]))
    if folder and re.fullmatch(r"(part)?[-_.\d]+\.parquet", file):
        parent, _, split = folder.rpartition("/")
        return Shard(name, parent or "data", split.removeprefix("partial-"), 0)
    return Shard(name, folder or "data", re.sub(r"[-_.]?\d*\.parquet$", "", file), 0)


def _download(spec: str, name: str, wanted: str) -> tuple[Path, list[Shard]]:
    """The folder that holds the chosen files, and these; from the cache where offline."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        revision = None
        names = _only_parquet(HfApi().list_repo_files(name, repo_type="dataset"))
        if not names:
            revision = CONVERTED
            files = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
            names = _only_parquet(files)
        shards = choose(spec, names, wanted)
        snapshot = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[shard.name for shard in shards],
        )
        return Path(snapshot), shards
    except UserError:
        raise
    except GatedRepoError:
        raise UserError(
            f"{spec}: its owner asks you to accept terms first, at huggingface.co/datasets/{name}, "
            "and to log in with: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{spec}: the Hub has no such data set (a private one needs: hf auth login)"
        ) from None
    except EntryNotFoundError:
        raise UserError(
            f"{spec}: holds no Parquet files; download it, unpack it and name the folder"
        ) from None
    except Exception as error:  # of the network, of many kinds
        folder = _cached(name)
        if folder is None:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(
                f"{spec}: is not in the cache and cannot be downloaded ({reason}); "
                "connect to the internet"
            ) from None
        return folder, choose(spec, _parquets(folder), wanted)


def _cached(name: str) -> Path | None:
    """The newest snapshot in huggingface_hub's cache, in the layout that it documents."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    for revision in ("main", CONVERTED.removeprefix("refs/"), CONVERTED):
        try:
            commit = (home / "refs" / revision).read_text().strip()
        except OSError:
            continue
        if (home / "snapshots" / commit).is_dir():
            return home / "snapshots" / commit
    return None


def _only_parquet(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".parquet")]


def _parquets(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]


def _key(folder: Path, shards: list[Shard]) -> str:
    """What tells one state of the files from another: where they are, how large, how old."""
    parts = [f"{FORMAT}"]
    for shard in shards:
        file = (folder / shard.name).resolve()  # the Hub's cache names a file by its hash
        status = file.stat()
        parts.append(f"{shard.name} {file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Columns:
    """What the columns of a Parquet file are."""

    image: str
    label: str | None
    classes: list[str] | None
    """None where the labels are not numbers of named classes."""
    others: list[str]


def _columns(spec: str, schema: "pa.Schema") -> Columns:
    """Find the images and the labels, by the features that the schema names or by type."""
    import pyarrow as pa

    features = {}
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        features = {k: v for k, v in info["info"]["features"].items() if isinstance(v, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        pass  # a file from elsewhere
    images = [n for n in schema.names if features.get(n, {}).get("_type") == "Image"]
    images += [n for n in schema.names if _holds_bytes(schema.field(n).type)]
    if not images:
        names = ", ".join(schema.names[:12])
        raise UserError(f"{spec}: no column of images in its Parquet files (there are: {names})")
    named = {n: f.get("names") for n, f in features.items() if f.get("_type") == "ClassLabel"}
    plain = [
        field.name
        for field in schema
        if not pa.types.is_nested(field.type) and not _is_binary(field.type)
    ]
    by_title = [n for n in LABEL_COLUMNS if n in plain]
    label = next(iter([n for n in by_title if n in named] + list(named) + by_title), None)
    others = [name for name in plain if name != label]
    return Columns(images[0], label, named.get(label) if label else None, others)


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _copy(spec: str, folder: Path, shards: list[Shard], place: Path) -> None:
    """Copy all images of the files into `place`/images.bin, with their places and labels."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = sum((folder / shard.name).stat().st_size for shard in shards)
    place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.parent).free
    if free < size:
        raise UserError(
            f"{spec}: needs {size / 1e9:.1f} GB in {place.parent}, where {free / 1e9:.1f} GB are "
            "free; set DINO_CACHE to a larger disk"
        )
    try:
        columns = _columns(spec, pq.read_schema(folder / shards[0].name))
        tables: list[pa.Table] = []
        places: list[tuple[int, int]] = []
        splits: dict[str, int] = {}
        with whole_folder(place) as aside:
            with (aside / "images.bin").open("wb") as file:
                for shard in shards:
                    for batch in _batches(folder / shard.name, columns):
                        places += _write_images(file, batch.column(columns.image))
                        tables.append(pa.Table.from_batches([batch]).drop_columns([columns.image]))
                        splits[shard.split] = splits.get(shard.split, 0) + batch.num_rows
            if not places:
                raise UserError(f"{spec}: holds no images")
            frame = pa.concat_tables(tables, promote_options="default").to_pandas()
            np.save(aside / "places.npy", np.array(places, np.int64), allow_pickle=False)
            labels, classes = _labels(frame, columns)
            if labels is not None:
                np.save(aside / "labels.npy", labels, allow_pickle=False)
            if columns.others:
                pd.DataFrame(frame[columns.others]).to_parquet(aside / "metadata.parquet")
            write_json(aside / "info.json", {"splits": list(splits.items()), "classes": classes})
    except (pa.ArrowException, KeyError) as error:
        text = " ".join(str(error).split())[:160]
        raise UserError(f"{spec}: its Parquet files cannot be read ({text})") from None


def _batches(file: Path, columns: Columns) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet as pq

    wanted = [columns.image, *([columns.label] if columns.label else []), *columns.others]
    with pq.ParquetFile(file) as opened:
        yield from opened.iter_batches(batch_size=ROWS, columns=wanted)


def _write_images(file: Any, column: "pa.Array") -> list[tuple[int, int]]:
    """Append each image's bytes to the file; offset and size of each (0 for one without)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    places = []
    for cell in column:
        data = cell.as_py() or b""
        places.append((file.tell(), len(data)))
        file.write(data)
    return places


def _labels(frame: Any, columns: Columns) -> tuple[np.ndarray | None, list[str]]:
    """Labels as int64 [n], -1 where there is none, and the names of the classes."""
    if columns.label is None:
        return None, []
    values = frame[columns.label]
    if columns.classes is None:
        labels, classes = label_values(values.tolist())
    else:
        labels, classes = values.fillna(-1).to_numpy(np.int64), columns.classes
    return (labels, classes) if (labels >= 0).any() else (None, [])
