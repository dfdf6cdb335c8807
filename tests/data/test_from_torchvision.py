"""`torchvision:` on small local copies in the layouts that torchvision itself downloads."""

import hashlib
import http.server
import io
import json
import pickle
import shutil
import tarfile
import threading
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from dino_core.data import open_source
from dino_core.data.cache import cache_folder
from dino_core.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 96, 96), dtype=np.uint8)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def home(name: str) -> Path:
    return cache_folder("torchvision", name)


def imagenette(root: Path) -> None:
    for split, values in (("train", (10, 20)), ("val", (30,))):
        for value in values:
            wnid = "n01440764" if value != 20 else "n02102040"
            picture(root / "imagenette2" / split / wnid / f"{value}.JPEG", value)


def test_imagenette():
    imagenette(home("imagenette"))
    source = open_source("torchvision:imagenette")
    assert list(source.ids) == [
        "imagenette2/train/n01440764/10.JPEG",
        "imagenette2/train/n02102040/20.JPEG",
    ]
    assert source.classes == ["tench", "English springer"]
    assert source.labels.tolist() == [0, 1] and source.splits is None
    assert source.image(1).max() == 20
    assert source.path(1) == home("imagenette") / source.ids[1]
    assert [open_source("torchvision:Imagenette:val").image(0).max()] == [30]
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    assert copy.labels.tolist() == [0, 1] and copy.image(0).max() == 10


def test_oxford_pets():
    root = home("oxfordiiitpet") / "oxford-iiit-pet"
    for value, name in enumerate(("Abyssinian_1", "pug_7", "Abyssinian_2")):
        picture(root / "images" / f"{name}.jpg", value)
    (root / "annotations").mkdir()
    lines = "pug_7 2 2 1\nAbyssinian_1 1 1 1\nAbyssinian_2 1 1 1\n"
    (root / "annotations" / "trainval.txt").write_text(lines)
    source = open_source("torchvision:oxford-iiit-pet")
    assert [Path(name).stem for name in source.ids] == ["Abyssinian_1", "Abyssinian_2", "pug_7"]
    assert source.classes == ["Abyssinian", "Pug"] and source.labels.tolist() == [0, 0, 1]


def test_food101():
    root = home("food101") / "food-101"
    picture(root / "images" / "pizza" / "1.jpg", 1)
    picture(root / "images" / "cake" / "2.jpg", 2)
    (root / "meta").mkdir()
    (root / "meta" / "train.json").write_text(json.dumps({"pizza": ["pizza/1"], "cake": []}))
    (root / "meta" / "test.json").write_text(json.dumps({"pizza": [], "cake": ["cake/2"]}))
    source = open_source("torchvision:food101:test")
    assert source.classes == ["cake", "pizza"]
    assert source.labels.tolist() == [0] and source.image(0).max() == 2


def test_flowers102(monkeypatch):
    from scipy.io import savemat

    root = home("flowers102") / "flowers-102"
    for number in (1, 2, 3):
        picture(root / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 5, 5]])})
    savemat(root / "setid.mat", {"trnid": [[3, 1]], "valid": [[2]], "tstid": [[2]]})
    files = {"image": ("102flowers.tgz", "")}
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (name, hashlib.md5((root / name).read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    source = open_source("torchvision:flowers102")
    assert [Path(name).stem for name in source.ids] == ["image_00001", "image_00003"]
    assert source.labels.tolist() == [76, 4]
    assert source.classes[76] == "passion flower"


@pytest.fixture
def stl10(monkeypatch):
    """STL10's binary files: columns first, labels from 1."""
    root = home("stl10") / "stl10_binary"
    root.mkdir(parents=True)
    for part in ("train", "test", "unlabeled"):
        PIXELS.transpose(0, 1, 3, 2).tofile(root / f"{part}_X.bin")
        np.array([1, 10, 3, 3], np.uint8).tofile(root / f"{part}_y.bin")
    (root / "class_names.txt").write_text("\n".join(f"class {k}" for k in range(10)))
    (root / "fold_indices.txt").write_text("0 1\n" * 10)
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)


def test_stl10_is_kept_as_an_array(stl10):
    source = open_source("torchvision:stl10")
    assert list(source.ids) == [f"stl10/{i:06d}" for i in range(4)]
    assert source.labels.tolist() == [0, 9, 2, 2] and source.classes[9] == "class 9"
    expected = PIXELS.transpose(0, 2, 3, 1)
    assert all(np.array_equal(source.image(i), expected[i]) for i in range(4))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(2)))), expected[2])
    assert len({source.fingerprint(i) for i in range(4)}) == 4
    assert source.image(0).flags.writeable
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    assert np.array_equal(copy.image(3), expected[3])
    assert len(pickle.dumps(source)) < 4000
    with pytest.raises(IndexError):
        source.image(4)
    shutil.rmtree(home("stl10"))  # not needed the second time
    assert len(open_source("torchvision:stl10")) == 4
    with pytest.raises(UserError, match="3 channels, not 4"):
        open_source("torchvision:stl10", channels=4)


def test_stl10_without_labels(stl10):
    source = open_source("torchvision:stl10:unlabeled")
    assert source.labels is None and source.classes == [] and len(source) == 4
    assert source.ids[0] == "stl10-unlabeled/000000"


def test_mnist_is_gray():
    root = home("mnist") / "MNIST" / "raw"
    root.mkdir(parents=True)
    digits = PIXELS[:, 0, :28, :28]
    for part in ("train", "t10k"):
        header = np.array([0x0803, 4, 28, 28], ">i4").tobytes()
        (root / f"{part}-images-idx3-ubyte").write_bytes(header + digits.tobytes())
        header = np.array([0x0801, 4], ">i4").tobytes()
        (root / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes([7, 1, 0, 2]))
    source = open_source("torchvision:mnist:test")
    assert source.image(1).shape == (28, 28, 3) and source.labels.tolist() == [7, 1, 0, 2]
    assert np.array_equal(source.image(1)[..., 2], digits[1])
    gray = open_source("torchvision:mnist:test", channels=1)
    assert np.array_equal(gray.image(1)[..., 0], digits[1])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Imagenette's archive, packed small, on this machine."""
    imagenette(tmp_path / "packed")
    archive = tmp_path / "served" / "imagenette2.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "packed" / "imagenette2", "imagenette2")
    monkeypatch.undo()  # the network, for this machine only
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{served.server_port}/imagenette2.tgz"
        checksum = hashlib.md5(archive.read_bytes()).hexdigest()
        archives = {"full": (address, checksum)}
        monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", archives)
        yield archive
        served.shutdown()


def test_downloaded_once(server):
    left = home(".imagenette.x.tmp")
    left.mkdir(parents=True)  # of a download that was killed
    assert len(open_source("torchvision:imagenette")) == 2
    server.unlink()
    assert len(open_source("torchvision:imagenette:val")) == 1
    assert not left.exists()
    assert [path.name for path in home("").iterdir() if path.is_dir()] == ["imagenette"]


def test_a_broken_download_leaves_nothing(server):
    server.write_bytes(server.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be downloaded"):
        open_source("torchvision:imagenette")
    assert not [path for path in home("").iterdir() if path.is_dir()]


def test_a_split_that_is_missing_is_downloaded_beside(server):
    imagenette(home("imagenette"))
    shutil.rmtree(home("imagenette") / "imagenette2" / "val")
    assert len(open_source("torchvision:imagenette:val")) == 1
    assert len(open_source("torchvision:imagenette")) == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cifar10", "pickles, .*hf:uoft-cs/cifar10"),
        ("CIFAR100:test", "hf:uoft-cs/cifar100"),
        ("nothing", "no data set of that name; it has imagenette"),
        ("", "no data set of that name"),
        ("imagenet", "torchvision cannot download it"),
        ("imagenette:dev", "Unknown value 'dev' for argument split"),
        ("mnist:val", "splits are train and test"),
        ("eurosat:test", "has no splits"),
        ("imagenette", "cannot be downloaded .*no route to host"),
        ("fer2013", "cannot download"),
    ],
)
def test_sentences(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        open_source(f"torchvision:{spec}")
    assert "\n" not in str(caught.value)
