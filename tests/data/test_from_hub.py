"""`hf:` on small local copies in the Hub's own layout and huggingface_hub's own cache."""

import io
import json
import multiprocessing
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dino_core.data import BadImage, open_source
from dino_core.data.from_hub import choose
from dino_core.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FEATURES = {
    "img": {"_type": "Image"},
    "fine": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"},
    "age": {"dtype": "int64", "_type": "Value"},
}


def picture(value: int) -> bytes:
    """A PNG of one gray value."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, values: list[int], features: dict | None = FEATURES) -> None:
    """Images of these gray values; label value % 3, age the value; one row group per two rows."""
    table = pa.table(
        {
            "img": pa.array(
                [{"bytes": picture(value), "path": f"{value}.png"} for value in values],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "fine": pa.array([value % 3 for value in values], pa.int64()),
            "age": pa.array(values, pa.int64()),
        }
    )
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of one snapshot in huggingface_hub's cache, with no network around."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "hub" / "datasets--owner--pets"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    folder = home / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def pets(snapshot):
    parquet(snapshot / "data" / "train-00000-of-00002.parquet", [10, 11, 12])
    parquet(snapshot / "data" / "train-00001-of-00002.parquet", [13, 14])
    parquet(snapshot / "data" / "test-00000-of-00001.parquet", [20])
    return snapshot


def test_everything_known(pets):
    source = open_source("hf:owner/pets")
    assert list(source.ids) == [f"train/{row:06d}" for row in range(5)]
    assert [int(source.image(i).max()) for i in range(5)] == [10, 11, 12, 13, 14]
    assert source.classes == ["cat", "dog", "cow"]
    assert source.labels.tolist() == [1, 2, 0, 1, 2] and source.labels.dtype == np.int64
    assert source.splits.tolist() == ["train"] * 5
    assert source.metadata["age"].tolist() == [10, 11, 12, 13, 14]
    assert list(source.metadata.columns) == ["age"]
    assert source.read(3) == picture(13)
    with pytest.raises(IndexError):
        source.read(5)


def test_a_split_by_name(pets):
    source = open_source("hf:owner/pets:test")
    assert list(source.ids) == ["test/000000"] and source.image(0).max() == 20
    with pytest.raises(UserError, match="there is no val; there are: test, train"):
        open_source("hf:owner/pets:val")


def test_a_folder_with_such_files_works_too(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    assert len(open_source(f"hf:./{COMMIT}")) == len(open_source(f"hf:{pets}:train")) == 5
    with pytest.raises(UserError, match="no such folder"):
        open_source("hf:./nothing")


def test_copied_once_and_again_when_the_files_change(pets, monkeypatch):
    open_source("hf:owner/pets")
    copy = "dino_core.data.from_hub._copy"
    with monkeypatch.context() as patch:
        patch.setattr(copy, lambda *args: pytest.fail("copied again"))
        assert len(open_source("hf:owner/pets")) == 5
    parquet(pets / "data" / "train-00001-of-00002.parquet", [1, 2, 3])
    assert open_source("hf:owner/pets").image(5).max() == 3


def test_workers_and_copies_read_alike(pets):
    source = open_source("hf:owner/pets")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    assert np.array_equal(copy.image(2), source.image(2))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        there = pool.map(source.image, range(5))
    assert [int(image.max()) for image in there] == [10, 11, 12, 13, 14]
    assert len(pickle.dumps(source)) < 5000


def test_without_named_features_types_and_titles_decide(snapshot):
    parquet(snapshot / "train.parquet", [4, 5, 6], features=None)
    source = open_source("hf:owner/pets")
    assert source.labels is None and list(source.metadata.columns) == ["fine", "age"]
    table = pa.table({"image": [picture(7), picture(8)], "label": ["b", None]})
    pq.write_table(table, snapshot / "train.parquet")
    source = open_source("hf:owner/pets")
    assert source.image(1).max() == 8
    assert source.classes == ["b"] and source.labels.tolist() == [0, -1]


def test_rows_without_an_image_or_a_label(snapshot):
    cells = [{"bytes": None, "path": "1.png"}, None, {"bytes": picture(3), "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = pa.table({"image": pa.array(cells, kind), "label": pa.array([1, None, -1])})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (snapshot / "data").mkdir()
    pq.write_table(table, snapshot / "data" / "train-00000-of-00001.parquet")
    source = open_source("hf:owner/pets")
    assert source.labels.tolist() == [1, -1, -1]
    for i in (0, 1):
        with pytest.raises(BadImage, match="holds no bytes"):
            source.image(i)
    assert source.image(2).max() == 3


@pytest.mark.parametrize(
    ("files", "wanted", "words"),
    [
        ([], "", "holds no Parquet files"),
        (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "", "a, b"),
        (["data/train-00000-of-00003.parquet"], "", "only 1 of 3 files are here"),
        (["data/train-00000-of-00001.parquet"], "x/train", "there is no x/train"),
    ],
)
def test_files_that_cannot_be_chosen(files, wanted, words):
    with pytest.raises(UserError, match=words) as caught:
        choose("hf:a/b", files, wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "b/train", [1]),
        (["default/test/0000.parquet", "default/train/0000.parquet"], "", [1]),
        (["test.parquet", "train.parquet"], "test", [0]),
        (["data/a-00000-of-00001.parquet", "data/b-00000-of-00001-0123.parquet"], "", [0, 1]),
        (["cifar100/test-00000-of-00001.parquet"], "test", [0]),
    ],
)
def test_files_of_a_split(files, wanted, chosen):
    assert [shard.name for shard in choose("hf:a/b", files, wanted)] == [files[i] for i in chosen]


@pytest.mark.parametrize("spec", ["hf:", "hf:name", "hf:a/b/c", "hf:a b/c"])
def test_names_that_are_none(spec):
    with pytest.raises(UserError, match="write hf:OWNER/NAME"):
        open_source(spec)


def test_offline_and_not_cached_is_a_sentence(snapshot):
    with pytest.raises(UserError, match="not in the cache and cannot be downloaded") as caught:
        open_source("hf:owner/others")
    assert "\n" not in str(caught.value)


def test_files_without_images_or_broken(snapshot):
    path = snapshot / "train.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(UserError, match=r"no column of images .*text"):
        open_source("hf:owner/pets")
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        open_source("hf:owner/pets")
    assert not [p for p in (snapshot.parents[3] / "cache" / "hf").iterdir() if p.is_dir()]


def test_downloaded_from_a_server(tmp_path, monkeypatch):
    """The whole way, from a Hub on this machine."""
    from huggingface_hub import constants

    file = tmp_path / "train-00000-of-00001.parquet"
    parquet(file, [30, 31])
    data = file.read_bytes()
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            body = data if "/resolve/" in self.path else json.dumps(self._answer()).encode()
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _answer(self):
            name = "data/train-00000-of-00001.parquet"
            if "/tree/" in self.path:
                return [{"type": "file", "path": name, "size": len(data), "oid": "abc"}]
            files = [{"rfilename": "README.md"}, {"rfilename": name}]
            return {"id": "owner/pets", "sha": COMMIT, "siblings": files}

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        source = open_source("hf:owner/pets")
        server.shutdown()
    assert [int(source.image(i).max()) for i in range(2)] == [30, 31]
    assert not [path for path in asked if "README.md" in path]
