"""The explorer without a browser: what it says when there is nothing, who may start a build."""

import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from explore import (
    address,
    components,
    loading,
    making,
    mapping,
    options,
    permission,
    server,
    state,
    words,
)
from explore.here import Here
from explore.opened import by_key, open_gallery
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from dino_core.errors import UserError
from dino_core.gallery.images import read_table, write_table
from dino_core.gallery.listing import gallery_name
from dino_core.gallery.selection import Selection

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the page as it is for a server with these arguments, bound to `host`."""
    monkeypatch.setattr(loading, "begin", lambda: None)

    def run(*arguments: str, host: str = "127.0.0.1") -> AppTest:
        monkeypatch.setattr(sys, "argv", ["explorer", "--root", str(tmp_path), *arguments])
        monkeypatch.setattr(permission, "host", lambda: host)
        options.options.cache_clear()
        page = AppTest.from_file(str(ROOT / "apps" / "explore" / "page.py"), default_timeout=60)
        return page.run()

    yield run
    options.options.cache_clear()


def said(page: AppTest) -> str:
    """Everything the page says, tags taken out."""
    assert not page.exception
    texts = [element.proto.body for element in page.get("html")]
    texts += [one.value for one in (*page.error, *page.warning, *page.caption, *page.markdown)]
    return re.sub(r"<[^>]+>", "", re.sub(r"\\([^\w\s]|_)", r"\1", " ".join(texts)))


def test_without_a_gallery_the_page_says_how_to_make_one(run):
    page = run()
    assert "No gallery yet" in said(page)
    assert "python scripts/demo.py --data FOLDER" in said(page)
    assert any(field.label == "Your folder" for field in page.text_input)


def test_a_gallery_that_is_not_there_is_named(run, tmp_path):
    text = said(run("--gallery", str(tmp_path / "nowhere")))
    assert "nowhere: no such gallery" in text


def test_the_gallery_of_the_command_line_comes_first(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    elsewhere = make_gallery(tmp_path / "other" / "b", "scenes:30")
    page = run("--gallery", str(elsewhere), "--model", "runs/mine@20")
    gallery, model = (
        next(box for box in page.selectbox if box.label == label) for label in ("Gallery", "Model")
    )
    assert (gallery.value, gallery.options) == ("b", ["b", "a"])
    assert model.value == "runs/mine@20"
    assert "These 30 images are generated" in said(page)


def test_the_page_follows_another_gallery(run, tmp_path, make_gallery):
    for name, count in (("a", 24), ("b", 36)):
        make_gallery(tmp_path / "galleries" / name, f"scenes:{count}")
    page = run()
    assert "All 24 images" in said(page)
    next(box for box in page.selectbox if box.label == "Gallery").set_value("b").run()
    assert "All 36 images" in said(page)
    assert "b" in page.query_params["gallery"]


def test_the_address_opens_an_image(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    page = run()
    page.query_params["image"] = "scenes/000007"
    page.run()
    assert "Nearest neighbors" in said(page) and "scenes/000007" in said(page)


def test_a_selection_is_summed_up(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    page = run()
    page.query_params["shown"] = "0,1"
    page.run()
    assert "4 selected" in said(page) and "50%" in said(page)
    del page.query_params["shown"]
    page.query_params["region"] = Selection((((9, 9), (9, 10), (10, 9)),)).to_text()
    page.run()
    assert "Nothing selected" in said(page) and "There is no point inside" in said(page)


def test_open_to_the_network_a_build_needs_the_token(run, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(making, "start_build", lambda *args, **kwargs: started.append(args))
    (tmp_path / "photos").mkdir()

    closed = run(host="0.0.0.0")
    assert "Starting a build from this page is off" in said(closed)
    assert not [field for field in closed.text_input if field.label == "Your folder"]

    page = run("--token", "sesame", "--data-root", str(tmp_path), host="0.0.0.0")
    folder, token = page.text_input[-2:]
    folder.set_value("photos")
    token.set_value("wrong")
    page.button[-1].click().run()
    assert "not the token" in said(page) and not started
    page.text_input[-1].set_value("sesame")
    page.button[-1].click().run()
    assert [Path(args[1]).name for args in started] == ["photos"]


def test_a_build_is_started_where_the_folder_says(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(making, "start_build", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(permission, "options", options.Options)
    monkeypatch.setattr(permission, "host", lambda: "127.0.0.1")
    with pytest.raises(UserError, match="Name a folder"):
        making.start(tmp_path, "starter", "")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        making.start(tmp_path, "starter", "nowhere")
    assert not started
    for folder in ("My photos", "elsewhere/My photos"):
        (tmp_path / folder).mkdir(parents=True)
        making.start(tmp_path, "runs/a@20", folder)
    making.start(tmp_path, "starter", "scenes:20")
    assert [(args[1], args[2].name) for args in started] == [
        (data, gallery_name(model, data))
        for model, data in (
            ("runs/a@20", str(tmp_path / "My photos")),
            ("runs/a@20", str(tmp_path / "elsewhere" / "My photos")),
            ("starter", "scenes:20"),
        )
    ]
    assert len({args[2] for args in started}) == 3


def test_a_finished_build_opens_by_itself_and_a_failed_one_says_why(
    run, tmp_path, monkeypatch, make_gallery
):
    make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    page = run()
    status = {"state": "running", "message": "Computing features", "done": 7, "total": 36}
    quiet = {"state": "none", "message": "", "done": 0, "total": 0}
    monkeypatch.setattr(making, "build_status", lambda p: quiet if p.name == "a" else status)
    new = tmp_path / "galleries" / "new"
    page.session_state["awaited"] = str(new)
    page.query_params["shown"] = "1"
    page.run()
    assert "2 selected" in said(page)
    assert page.get("progress")[0].proto.text == "Making **new**: Computing features 7 of 36"

    make_gallery(new, "scenes:36")
    status["state"] = "done"
    page.run()
    assert "All 36 images" in said(page) and not page.get("progress")

    status |= {"state": "failed", "message": "the disk is full"}
    page.session_state["awaited"] = str(tmp_path / "galleries" / "other")
    page.run()
    assert "other: the disk is full" in said(page)


def test_routes_serve_open_galleries_alone(tmp_path, make_gallery):
    opened = open_gallery(make_gallery(tmp_path / "a", "scenes:24"))
    assert by_key(opened.key) is opened and by_key("0" * 18) is None
    assert len(server.points(opened, "pca").body) == 24 * 2 * 4
    assert len(server.codes(opened, "0/label").body) == 24
    for answer in (
        server.points(opened, "../pca"), server.codes(opened, "0/id"),
        server.image(opened, 24), server.image(opened, -1), server.info(opened, 99),
    ):  # fmt: skip
        assert answer.status_code == 404
    assert b'"label":"' in server.info(opened, 3).body


def test_any_column_name_survives_its_address(tmp_path, make_gallery, monkeypatch):
    folder, name = make_gallery(tmp_path / "a", "scenes:24"), "a/b?50%"
    write_table(folder, read_table(folder).assign(**{name: ["x", "y"] * 12}))
    opened = open_gallery(folder)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(components, "scatter", lambda **values: drawn.update(values))
    monkeypatch.setattr(address, "st", SimpleNamespace(session_state={}))
    monkeypatch.setattr(state, "st", SimpleNamespace(session_state={}))
    mapping.draw(Here(tmp_path, "starter", None, opened), name, "pca")  # type: ignore[arg-type]
    browser = TestClient(Starlette(routes=server.ROUTES))
    answer = browser.get("/" + drawn["data"]["codes"])
    assert answer.content == bytes(opened.coloring(name).codes) and len(answer.content) == 24


def test_a_gray_tile_is_not_kept_by_the_browser(tmp_path, make_gallery, monkeypatch):
    opened = open_gallery(make_gallery(tmp_path / "a", "scenes:24"))
    assert "immutable" in server.image(opened, 3).headers["cache-control"]

    def gone(row):
        raise UserError("it is gone")

    monkeypatch.setattr(opened.gallery, "image", gone)
    tile = server.image(opened, 4)
    assert (tile.status_code, tile.headers["cache-control"]) == (200, "no-store")


def test_a_rebuilt_gallery_has_another_key(tmp_path, make_gallery):
    folder = make_gallery(tmp_path / "a", "scenes:24")
    before = open_gallery(folder)
    assert open_gallery(folder) is before
    manifest = folder / "gallery.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert open_gallery(folder).key != before.key


def test_a_model_that_fails_says_so_until_it_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_import_libraries", lambda: None)
    monkeypatch.setattr(loading, "_libraries", None)
    outcomes = iter([UserError("a: is no model"), "the model"])

    def load_model(spec: str, root: Path) -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def settled() -> loading.Loading:
        loading.load("a", tmp_path)
        key = next(key for key in loading._models if key[0] == "a")
        loading._models[key].exception(10)
        return loading.load("a", tmp_path)

    monkeypatch.setattr(loading, "_load_model", load_model)
    assert settled().error == settled().error == "a: is no model"
    loading.forget("a")
    assert settled().model == "the model"


def test_both_apps_have_one_look():
    """config.toml, which Streamlit reads, repeats the tokens of theme.css, which all else reads."""
    settings = tomllib.loads((ROOT / "apps" / ".streamlit" / "config.toml").read_text())
    tokens = dict(re.findall(r"(--d-[\w-]+): light-dark\(([^)]*)\)", components.tokens()))
    for place, theme in enumerate(("light", "dark")):
        for setting, token in {
            "primaryColor": "--d-accent", "backgroundColor": "--d-bg",
            "secondaryBackgroundColor": "--d-surface", "textColor": "--d-text",
            "borderColor": "--d-line",
        }.items():  # fmt: skip
            assert settings["theme"][theme][setting] == tokens[token].split(", ")[place]


def test_settings_keep_to_this_machine():
    settings = tomllib.loads((ROOT / "apps" / ".streamlit" / "config.toml").read_text())
    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["maxUploadSize"] == 20


def test_what_a_component_says_is_checked(tmp_path, make_gallery, monkeypatch):
    opened = open_gallery(make_gallery(tmp_path / "a", "scenes:24"))
    session: dict[str, Any] = {
        state.MAP_KEY: {"pick": "7", "select": "everything"}, "grid": {"pick": 24, "page": "2"},
    }  # fmt: skip
    for module in (state, address):
        monkeypatch.setattr(module, "st", SimpleNamespace(session_state=session))
    state.on_map(opened, "pick")
    state.on_map(opened, "select")
    state.on_grid(opened, "grid")
    state.on_page("grid", "p")
    assert not session.get("address")

    session[state.MAP_KEY] = {"pick": 7, "select": {"polygons": [], "shown": [1], "stamp": 5}}
    session["grid"]["page"] = 2
    state.on_map(opened, "pick")
    assert state.picked(opened) == 7 and address.get("image") == opened.id(7)
    state.on_page("grid", "p")
    assert address.get("p") == "3"
    state.on_map(opened, "select")
    assert state.picked(opened) is address.get("p") is None and state.selection().shown == {1}
    assert state.selection_message()["stamp"] == 5


def test_back_and_forward_show_what_was_there(run, tmp_path, make_gallery):
    """The browser then sends an address that the page did not write last."""
    make_gallery(tmp_path / "galleries" / "a", "scenes:48")
    page = run()
    assert not page.query_params, "a bare address stays bare, or Back could not leave it"
    box = next(box for box in page.selectbox if box.label == "Color")
    box.set_value("similarity to nearest").run()
    assert page.query_params["color"] == "similarity to nearest"
    page.query_params["p"] = "2"
    page.run()
    del page.query_params["color"]
    page.run()
    assert next(box for box in page.selectbox if box.label == "Color").value == "label"
    assert dict(page.query_params) == {"gallery": "a", "p": "2"}


def test_a_page_keeps_its_own_values_and_shares_the_common_ones(monkeypatch):
    session: dict[str, Any] = {}
    monkeypatch.setattr(address, "st", SimpleNamespace(session_state=session))
    address.put(gallery="a", image="x", k="5")
    address.go("clusters", of="kmeans")
    assert session["address"] == {
        "gallery": "a", "image": "x", "page": "clusters", "of": "kmeans"
    }  # fmt: skip
    address.go("map", image=None)
    assert session["address"] == {"gallery": "a", "k": "5"}
    address.go("clusters")
    assert address.get("of") == "kmeans" and address.get("image") is None


def test_a_gallery_that_is_gone_is_not_swapped_for_another(run, tmp_path, make_gallery):
    for name, count in (("a", 24), ("b", 36)):
        make_gallery(tmp_path / "galleries" / name, f"scenes:{count}")
    page = run()
    for name, value in {"gallery": "c", "image": "scenes/000007"}.items():
        page.query_params[name] = value
    page.run()
    assert "There is no gallery c here, or it is being built; choose another." in said(page)
    assert "All 24 images" not in said(page) and "scenes/000007" not in said(page)
    box = next(box for box in page.selectbox if box.label == "Gallery")
    assert box.value is None and page.query_params["gallery"] == "c"
    box.set_value("b").run()
    assert "All 36 images" in said(page) and dict(page.query_params) == {"gallery": "b"}


def test_the_open_gallery_is_not_swapped_when_it_goes(run, tmp_path, make_gallery):
    for name, count in (("a", 24), ("b", 36)):
        make_gallery(tmp_path / "galleries" / name, f"scenes:{count}")
    page = run()
    next(box for box in page.selectbox if box.label == "Gallery").set_value("b").run()
    (tmp_path / "galleries" / "b").rename(tmp_path / "b")
    page.run()
    assert "There is no gallery b here" in said(page) and "All 24" not in said(page)


def test_names_stay_text(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    page = run()
    for link in ("[Log in](http://evil)", "![x](http://evil)", "**a** `b` $c$ <d> ~e~ _f_ :red[g]"):
        page.query_params["image"] = link
        page.run()
        told = next(one.value for one in page.caption if "has no image" in one.value)
        assert not re.search(r"(?<!\\)[\[\]*`$<>~_:]", told)
        assert link in re.sub(r"\\(.)", r"\1", told)
    assert words.plain("- a\n1. b\n# c\n---") == "\\- a\n1\\. b\n\\# c\n\\---"
    assert words.plain("a-b.jpg (3)") == "a-b.jpg (3)"


def test_strangers_learn_no_paths(tmp_path, monkeypatch):
    root, data = tmp_path / "lab", tmp_path / "lab" / "photos"
    chosen = options.Options(root=root, data_root=(data,))
    monkeypatch.setattr(words, "options", lambda: chosen)
    pets = str(tmp_path / "elsewhere" / "pets")
    sentence = f"{root}/galleries/a: not {data}/cats, {root}oratory, {pets}; {Path.home()}/b"
    monkeypatch.setattr(permission, "may_act", lambda: True)
    assert words.told(sentence, pets) == sentence
    monkeypatch.setattr(permission, "may_act", lambda: False)
    assert words.told(sentence, pets, "scenes:20", None) == (
        f"ROOT/galleries/a: not DATA/photos/cats, {root}oratory, pets; ~/b"
    )


def test_whole_numbers_of_an_address(monkeypatch):
    session: dict[str, Any] = {}
    monkeypatch.setattr(address, "st", SimpleNamespace(session_state=session))
    for text, value in {
        "7": 7, "0": 1, "999": 50, "": 18, "-3": 18, "1e3": 18, "inf": 18, "9" * 5000: 18,
    }.items():  # fmt: skip
        address.put(k=text)
        assert address.whole("k", 1, 50, 18) == value
    assert address.whole("l", 1, 50, None) is None
    for text in ("inf", "-inf", "nan", "1e999"):
        assert address._number(text, int, 18) == 18


def test_an_address_of_absurd_numbers_opens_the_page(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "a", "scenes:48")
    for name in ("map", "neighbors", "clusters", "quality"):
        page = run()
        for value, number in zip(("p", "k", "shown", "lp"), ("9" * 5000, "inf") * 2, strict=True):
            page.query_params[value] = number
        page.query_params["cluster"] = "9" * 5000
        page.query_params["page"] = name
        page.run()
        assert not page.exception, name


def test_a_slider_keeps_its_digits(monkeypatch):
    session: dict[str, Any] = {}
    drawn = SimpleNamespace(session_state=session, slider=lambda *args, **how: 0.98765432)
    monkeypatch.setattr(address, "st", drawn)
    address.slider("Alike", "alike", 0.9, 1.0, 0.95)
    assert float(address.get("alike") or "") == 0.98765432


def test_back_within_a_second_is_no_click(monkeypatch):
    """A click may overtake the address that was just written; Back says that it is Back."""
    session: dict[str, Any] = {}

    class Browser(dict):
        to_dict = dict.copy

        def from_dict(self, values):
            self.clear()
            self.update(values)

    browser, run = Browser(k="1"), SimpleNamespace(is_history_navigation=False)
    monkeypatch.setattr(address, "st", SimpleNamespace(session_state=session, query_params=browser))
    monkeypatch.setattr(address, "get_script_run_ctx", lambda **_: run)
    address.begin()
    address.put(k="2")
    address.finish()
    browser["k"] = "1"  # a click that was on its way
    assert address.begin() == set() and address.get("k") == "2"
    run.is_history_navigation = True
    assert address.begin() == {"k"} and address.get("k") == "1"


def test_a_damaged_neighbor_file_leaves_image_and_map(run, tmp_path, make_gallery):
    path = make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    (path / "neighbors.npz").write_bytes(b"PK")
    page = run()
    page.query_params["image"] = "scenes/000007"
    page.run()
    assert "neighbors.npz" in said(page) and "scenes/000007" in said(page)
    assert any(box.label == "Color" for box in page.selectbox), "the map is drawn after the panel"


def test_a_gallery_with_something_broken_says_so_on_every_page_and_shows_the_rest(
    run, tmp_path, make_gallery
):
    folder = make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    (folder / "neighbors.npz").write_bytes(b"cut short")
    page = run()
    assert "neighbors.npz" in said(page) and "All 24 images" in said(page)
    page.query_params["page"] = "clusters"
    assert "neighbors.npz" in said(page.run())


def test_a_page_that_is_not_there_is_named(run, tmp_path, make_gallery):
    make_gallery(tmp_path / "galleries" / "a", "scenes:24")
    page = run()
    page.query_params["page"] = "nothere"
    assert "There is no page nothere; this is the map." in said(page.run())
