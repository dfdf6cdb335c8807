"""The lens asked by other programs: the answers of `dino_core.api`, for files that were sent."""

import ast
import base64
import dataclasses
import http.client
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dino_core import api, catalog
from dino_core.errors import UserError
from dino_core.gallery import Gallery
from dino_core.lenses.pca import PcaBasis
from dino_core.lenses.render import nearest
from dino_core.models import Model, load_model

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["embed", "attention", "similar", "pca", "mask"]
FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    from gradio_client import Client

    client = Client(address, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def ask(client: Any, root: Path) -> Any:
    """`ask("embed", kind="cls")` about photo.jpg, or about another `photo`."""
    from gradio_client import handle_file

    def ask(name: str, photo: str = "photo.jpg", **details: Any) -> dict[str, Any]:
        return client.predict(handle_file(root / photo), api_name=f"/{name}", **details)

    return ask


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    return load_model(str(root / "small.safetensors"), device="cpu")


@pytest.fixture(scope="module")
def endpoints() -> Any:
    import endpoints

    return endpoints


def array(text: str) -> np.ndarray:
    """As the top of apps/endpoints.py says."""
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """The same up to the number of compute threads, which is the server's own."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def area(points: list[list[int]]) -> float:
    """What a ring encloses, in pixels, whichever way it runs (the shoelace formula)."""
    x, y = np.array(points, np.float64).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


# -- what is answered -----------------------------------------------------------------------------


def test_exactly_five_are_public(client: Any) -> None:
    told = client.view_api(return_format="dict")
    assert list(told["named_endpoints"]) == [f"/{name}" for name in NAMES]
    assert not told["unnamed_endpoints"]
    for about in told["named_endpoints"].values():
        first, *others = about["parameters"]
        assert first["parameter_name"] == "image" and first["python_type"]["type"] == "filepath"
        assert about["description"]
        assert all(one["parameter_has_default"] for one in others)
    public = [one for one in client.config["dependencies"] if one["api_visibility"] != "private"]
    assert [one["api_name"] for one in public] == NAMES
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(api_name="/ask")


@pytest.mark.parametrize("kind", ["cls", "cls+gem", "mean patch"])
def test_embed(ask: Any, model: Model, root: Path, kind: str) -> None:
    answer, expected = ask("embed", kind=kind), api.embed(model, root / "photo.jpg", kind=kind)
    close(np.array(answer["vector"], np.float32), expected.vector)
    assert sum(x * x for x in answer["vector"]) == pytest.approx(1, abs=1e-5)
    assert (answer["kind"], answer["feature_hash"]) == (kind, expected.feature_hash)
    assert answer["model"] == "small.safetensors"


def test_attention(ask: Any, model: Model, root: Path) -> None:
    expected = api.attention(model, root / "photo.jpg")
    answer = ask("attention")
    close(array(answer["maps"]), expected.maps)
    assert (answer["layer"], answer["query"]) == (2, None)
    assert (answer["image_size"], answer["source_size"]) == ([224, 296], [240, 320])
    assert (answer["model"], answer["model_hash"]) == ("small.safetensors", model.hash)


def test_attention_of_one_head_from_a_patch(ask: Any, model: Model, root: Path) -> None:
    asked = {"layer": 1, "size": 64}
    expected = api.attention(model, root / "photo.jpg", query=(2, 9), **asked)
    answer = ask("attention", row=2, column=9, **asked)
    close(array(answer["maps"]), expected.maps)
    assert answer["query"] == [2, 9]
    for head in (1, -1):
        one = array(ask("attention", row=2, column=9, head=head, **asked)["maps"])
        close(one, expected.maps[head][None])


def test_similar(ask: Any, model: Model, root: Path) -> None:
    gallery = Gallery.open(root / "galleries" / "few")
    expected = api.similar(model, gallery, root / "photo.jpg")
    answer = ask("similar")
    assert answer["rows"] == expected.rows.tolist() and answer["ids"] == expected.ids
    assert answer["labels"] == expected.labels and len(answer["ids"]) == 20
    close(np.array(answer["scores"], np.float32), expected.scores)
    assert (answer["gallery"], answer["model"]) == ("few", "small.safetensors")


def test_similar_to_a_box_among_some_images(ask: Any, model: Model, root: Path) -> None:
    gallery = Gallery.open(root / "galleries" / "few")
    labels = sorted(set(gallery.images["label"]))[:4]
    asked = {"k": 3, "box": [40.5, 0, 200, 100], "where": {"label": labels}}
    expected = api.similar(model, gallery, root / "photo.jpg", **asked)
    answer = ask("similar", **asked)
    assert answer["ids"] == expected.ids and set(answer["labels"]) <= set(labels)
    assert answer["ids"] != ask("similar", k=3)["ids"], "both are at work"
    one = ask("similar", where={"label": labels[0]})
    assert set(one["labels"]) == {labels[0]}


def test_a_gallery_is_named_as_the_page_lists_it(ask: Any, root: Path) -> None:
    key = catalog.gallery_key(root / "galleries" / "few")
    [(listed, title)] = catalog.Workbench(root).galleries()
    assert listed == key
    assert ask("similar", gallery=key) == ask("similar", gallery=title)
    assert ask("similar", gallery="few") == ask("similar")


def test_pca_and_its_basis(ask: Any, model: Model, root: Path) -> None:
    expected = api.pca(model, root / "photo.jpg", foreground=True, size=128)
    answer = ask("pca", foreground=True, size=128)
    colors, inside = array(answer["colors"]), array(answer["foreground"])
    assert colors.dtype == np.uint8 and inside.dtype == bool
    assert np.abs(colors.astype(int) - expected.colors).max() <= 1
    assert (inside != expected.foreground).mean() < 0.01
    basis = PcaBasis.from_bytes(base64.b64decode(answer["basis"]), "the answer's")
    assert basis.model == "small.safetensors", "no path travels in it"
    again = ask("pca", basis=answer["basis"], size=128)
    assert again["colors"] == answer["colors"]
    other = ask("pca", basis=answer["basis"], size=96)
    here = api.pca(model, root / "photo.jpg", basis, size=96)
    assert np.abs(array(other["colors"]).astype(int) - here.colors).max() <= 1


@pytest.mark.parametrize(
    "asked",
    [{}, {"kind": "head", "head": 1, "layer": 0, "keep": 0.4, "size": 96}, {"kind": "head"}],
)
def test_mask(ask: Any, model: Model, root: Path, asked: dict[str, Any]) -> None:
    expected = api.mask(model, root / "photo.jpg", **asked)
    answer = ask("mask", **asked)
    assert (array(answer["patches"]) != expected.patches).mean() < 0.01
    assert answer["image"] == [240, 320] and answer["kind"] == asked.get("kind", "object")
    mask = nearest(array(answer["patches"]), 240, 320)
    around = sum(area(ring["points"]) * (-1 if ring["hole"] else 1) for ring in answer["polygons"])
    assert around == pytest.approx(mask.sum(), rel=0.01, abs=2)
    assert ask("mask", refine=True, **asked)["polygons"] != answer["polygons"]


def test_another_listed_model_can_be_asked(ask: Any) -> None:
    answer = ask("embed", model="starter")
    assert answer["model"] == "starter" and len(answer["vector"]) != 24


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        ("embed", {"kind": "all"}, "feature kind 'all' is unknown; there are cls"),
        ("embed", {"kind": 3}, "kind is missing or too long"),
        ("embed", {"model": "/etc/passwd"}, "not in the list; pick one"),
        ("embed", {"model": "runs/none"}, "not in the list; pick one"),
        ("embed", {"photo": "text.jpg"}, "text.jpg: .*; choose another picture"),
        ("attention", {"layer": 3}, "layer 3: small.safetensors has 3 layers"),
        ("attention", {"layer": "last"}, "layer is 'last'; it must be a whole number"),
        ("attention", {"head": 3}, "head is 3; it must lie between -3 and 2"),
        ("attention", {"row": 2}, "column is None; it must be a whole number"),
        ("attention", {"row": 0, "column": 99}, "no such patch"),
        ("attention", {"size": 4}, "smaller than one patch"),
        ("attention", {"size": 20_000}, "use size 880 or smaller"),
        ("similar", {"k": 1_001}, "k is 1001; it must lie between 1 and 1000"),
        ("similar", {"gallery": "many"}, "many: no gallery of that name here; there are few"),
        ("similar", {"gallery": "../galleries/few"}, "no gallery of that name here"),
        ("similar", {"box": [0, 0, 321, 9]}, "within 320 x 240 pixels"),
        ("similar", {"box": [0, 0, 9]}, "box: must be a list of left, top, right and bottom"),
        ("similar", {"where": {"color": 1}}, "few: has no column 'color'; there are id"),
        ("similar", {"where": {"label": [{}]}}, "where: label must be texts or numbers"),
        ("similar", {"where": ["label"]}, "where: must be values by column"),
        ("similar", {"model": "starter"}, "few: holds features of small.safetensors"),
        ("pca", {"basis": "not base64"}, "basis: is not the base64 of one"),
        ("pca", {"basis": "eHh4"}, "this basis: not a PCA basis, or damaged"),
        ("mask", {"kind": "person"}, "mask kind 'person': unknown; use object or head"),
        ("mask", {"keep": 1.5}, "keep is 1.5; it must lie between 0 and 1"),
        ("mask", {"kind": "head", "head": 5}, "head 5: small.safetensors has 3 heads"),
    ],
)
def test_a_mistake_is_a_sentence_without_paths(
    ask: Any, root: Path, name: str, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(Exception, match=told) as error:
        ask(name, **asked)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert str(root) not in sentence and "Traceback" not in sentence


def call(address: str, name: str, *data: Any) -> str:
    """What an endpoint answers to plain HTTP: the last event's text."""
    body = json.dumps({"data": data}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}gradio_api/call/{name}", body, headers)
    number = json.load(urllib.request.urlopen(asked, timeout=300))["event_id"]
    return urllib.request.urlopen(asked.full_url + f"/{number}", timeout=300).read().decode()


@pytest.mark.parametrize(
    "image",
    [
        {"path": "/etc/hostname"},
        {"path": "/etc/hostname", "meta": FILE},
        {"path": str(ROOT / "pyproject.toml"), "meta": FILE, "orig_name": "mine.jpg"},
        {"path": "http://127.0.0.1/a.jpg"},
        {"path": "https://example.com/a.jpg", "meta": FILE},
        {"path": "HTTP://example.com/a.jpg", "meta": FILE, "is_stream": True},
        {"path": "a.jpg", "url": "https://example.com/a.jpg", "meta": FILE},
        {"path": "\0", "meta": FILE},
        [{"path": "https://example.com/a.jpg", "meta": FILE}],
        "https://example.com/a.jpg",
        "/etc/hostname",
        None,
        7,
    ],
)
def test_only_a_file_that_was_sent_is_opened(address: str, image: Any) -> None:
    answer = call(address, "embed", image, "", "cls")
    assert answer.startswith("event: error")
    assert re.search("did not arrive|image is missing", answer), answer
    assert "Traceback" not in answer


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", ["http://example.com/a", "https://example.com/a", "https:a"])
def test_the_server_hands_nothing_on_from_elsewhere(address: str, what: str, method: str) -> None:
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=60)
    connection.request(method, f"/gradio_api/file={what}")
    answer = connection.getresponse()
    assert answer.status == 403
    assert method == "HEAD" or answer.read() == b"addresses are not fetched here"
    connection.close()


# -- the parts ------------------------------------------------------------------------------------


def test_all_that_computes_waits_in_one_line(endpoints: Any, root: Path) -> None:
    import lens

    blocks = lens.LensPage(lens.Options(root=root)).blocks()
    queued = [one for one in blocks.fns.values() if one.queue is not False]
    assert {one.concurrency_id for one in queued} == {"compute"}
    assert {one.concurrency_limit for one in queued} == {1}
    assert [one.api_name for one in queued if one.api_visibility == "public"] == NAMES


def test_files_are_told_from_other_values(endpoints: Any, tmp_path: Path) -> None:
    sent, other = tmp_path / "sent" / "a.jpg", tmp_path / "other.jpg"
    sent.parent.mkdir()
    for path in (sent, other):
        path.write_bytes(b"x")
    (sent.parent / "link.jpg").symlink_to(other)

    def named(path: Any) -> dict[str, Any]:
        return {"path": str(path), "meta": FILE}

    for good in (named(sent), [named(sent), 3], {"a": [named(sent)]}, "x", None, {"path": "x"}):
        assert endpoints.all_uploaded(good, str(sent.parent))
    for bad in (
        named(other),
        named(sent.parent),
        named(sent.parent / ".." / "other.jpg"),
        named(sent.parent / "link.jpg"),
        named("https://example.com/sent/a.jpg"),
        [named(sent), named(other)],
        {"a": {"b": [named(other)]}},
    ):
        assert not endpoints.all_uploaded(bad, str(sent.parent)), bad


def test_published_names_need_the_token_on_a_network(endpoints: Any, root: Path) -> None:
    def allowed(host: str, token: str | None, said: str | None) -> bool:
        headers = {} if said is None else {"authorization": said}
        bench = catalog.Workbench(root)
        return endpoints.Endpoints(bench, host, token)._names_allowed(
            SimpleNamespace(headers=headers)
        )

    assert allowed("127.0.0.1", None, None)
    assert allowed("0.0.0.0", "secret", "Bearer secret")
    for said in (None, "", "secret", "Bearer", "Bearer guess", "Basic secret"):
        assert not allowed("0.0.0.0", "secret", said), said
    assert not allowed("0.0.0.0", None, "Bearer None")


def test_sentences_lose_paths_and_keep_the_rest(endpoints: Any, tmp_path: Path) -> None:
    root = tmp_path / "Jane Doe" / "root"
    root.mkdir(parents=True)
    bench = catalog.Workbench(root, model=str(tmp_path / "my weights" / "a.pth"))

    def told(sentence: str) -> str:
        return bench.sentence(UserError(sentence))

    assert told(f"{root}/galleries/few: is empty") == "galleries/few: is empty"
    assert told(f"{tmp_path}/my weights/a.pth: is empty") == "a.pth: is empty"
    assert told("/usr/lib/x.so, /a: 3/4 of and/or; runs/a") == "x.so, /a: 3/4 of and/or; runs/a"


def test_an_answer_is_bounded(endpoints: Any, model: Model) -> None:
    seen = api.attention(model, np.zeros((64, 64, 3), np.uint8))
    assert endpoints.plain(seen)["layer"] == 2
    big = dataclasses.replace(seen, maps=np.zeros((3, 900, 900), np.float32))
    with pytest.raises(UserError, match="larger than 8 MB; ask at a smaller size"):
        endpoints.plain(big)


def test_a_bound_basis_is_long_enough(endpoints: Any) -> None:
    """The widest published model's basis fits; what is longer is no basis."""
    widest = PcaBasis(
        mean=np.zeros(4096, np.float32),
        components=np.zeros((3, 4096), np.float32),
        low=np.zeros(3, np.float32),
        high=np.ones(3, np.float32),
        axis=np.zeros(4096, np.float32),
        threshold=0.0,
        foreground_only=False,
        model="wide",
        model_hash="0" * 64,
    )
    text = base64.b64encode(widest.to_bytes()).decode()
    assert endpoints.decoded(text) == widest.to_bytes()
    with pytest.raises(UserError, match="too long"):
        endpoints.decoded("A" * (endpoints.MOST_BASIS + 4))


def test_a_page_answers_before_torch_is_there() -> None:
    """Of this house only what imports no torch is imported at the top."""
    tree = ast.parse((ROOT / "apps" / "endpoints.py").read_text(encoding="utf-8"))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    light = {f"dino_core.{room}" for room in ("catalog", "data", "errors", "serving")}
    assert {name for name in imported if name and name.startswith("dino_core.")} <= light


def test_sizes_and_boxes_are_numbers(endpoints: Any) -> None:
    assert endpoints.side(None) is None and endpoints.side(64) == 64
    for wrong in (0, -1, 1.5, "64", True, float("inf")):
        with pytest.raises(UserError, match="size is"):
            endpoints.side(wrong)
    assert endpoints.sides([0, 1.5, 2, 3]) == (0, 1.5, 2, 3)
    for wrong in ([0, 0, 1, "9"], [0, 0, 1, float("nan")], {"left": 0}, 7):
        with pytest.raises(UserError, match=r"box|bottom"):
            endpoints.sides(wrong)


# -- what the documents say -----------------------------------------------------------------------


def test_the_readme_s_other_program_runs(address: str, root: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("### From another program\n")[1].split("\n## ")[0]
    (lines,) = re.findall(r"```py\n(.*?)```", section, re.DOTALL)
    assert "http://127.0.0.1:7860/" in lines
    told = subprocess.run(
        [sys.executable, "-c", lines.replace("http://127.0.0.1:7860/", address)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert re.search(r"\(3, 28, 37\) \[('scenes/\d{6}'(, )?){5}\] \[", told.stdout), told.stdout
