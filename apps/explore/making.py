"""Making a gallery of your own folder: the form, the command that does the same, the progress.

A build is a process of its own: it goes on when the page is closed, and is found again.
"""

import html
from pathlib import Path

import streamlit as st

from dino_core.errors import UserError
from dino_core.files import check_name
from dino_core.gallery import build_status, start_build, stop_build
from dino_core.gallery.listing import gallery_name, list_galleries
from explore import permission, words
from explore.opened import Opened

COMMAND = "python scripts/demo.py --data FOLDER"


def notice(root: Path, model: str, opened: Opened) -> None:
    """Say plainly that the images are generated, with the way to one's own right beside it."""
    with st.container(key="notice", horizontal=True, vertical_alignment="center", gap="medium"):
        st.html(
            f"<p><b>These {len(opened.labels):,} images are generated</b>, drawn by this program "
            "as a test bed; they are not photographs. To see your own, name their folder here, "
            f"or run <code>{COMMAND}</code>.</p>"
        )
        _form(root, model, key="notice_form")


def first(root: Path, model: str, *, empty: bool) -> None:
    """The page of someone who has no gallery yet."""
    with st.container(key="empty"):
        title = "No gallery yet" if empty else "That gallery cannot be opened"
        st.html(
            f"<h2>{title}</h2><p class='facts'>A gallery is a collection of images seen through a "
            "model: their features, their neighbors, a map. Name a folder of images to make one. "
            f"In a terminal, <code>{COMMAND}</code> does it, and <code>python scripts/demo.py"
            f"</code> makes one of generated images. Galleries are kept in <code>"
            f"{html.escape(words.told(root / 'galleries'))}</code>.</p>"
        )
        _form(root, model, key="first_form")


def progress(root: Path) -> None:
    """A bar for every build under the root that is running, whoever started it."""
    running = _running(root)
    with st.container(key="making"):  # always there, so that nothing below moves to another place
        if running or st.session_state.get("awaited"):
            _bars(str(root), tuple(path.name for path in running))


@st.fragment(run_every=1.0)
def _bars(root: str, before: tuple[str, ...]) -> None:
    awaited = st.session_state.get("awaited")
    if awaited and build_status(Path(awaited))["state"] != "running":
        del st.session_state["awaited"]
        _finished(Path(awaited))
        st.rerun()
    running = _running(Path(root))
    if {path.name for path in running} != set(before):
        st.rerun()  # one has begun or ended: the page has to tell of it
    for path in running:
        status = build_status(path)
        share = status["done"] / status["total"] if status["total"] else 0.0
        count = f" {status['done']:,} of {status['total']:,}" if status["total"] > 1 else ""
        with st.container(key=f"making_{path.name}", horizontal=True, vertical_alignment="center"):
            doing = words.plain(words.told(status["message"]) + count)
            st.progress(min(share, 1.0), text=f"Making **{words.plain(path.name)}**: {doing}")
            if permission.may_act():
                st.button(
                    "Cancel", key=f"stop {path}", on_click=_stop, args=(path,),
                    help="What is done so far is kept: it can be gone on with.",
                )  # fmt: skip


def _stop(path: Path) -> None:
    stop_build(path)


def _finished(path: Path) -> None:
    """A build that this visitor started has ended: open its gallery, or say why there is none."""
    status = build_status(path)
    if status["state"] == "done":
        if st.session_state.get("opens", True):
            st.session_state["open next"] = path.name
    else:
        st.session_state["build error"] = f"{path.name}: {status['message']}"


def _running(root: Path) -> list[Path]:
    awaited = st.session_state.get("awaited")
    running = [
        one.path for one in list_galleries(root) if build_status(one.path)["state"] == "running"
    ]
    if (
        awaited
        and Path(awaited) not in running
        and build_status(Path(awaited))["state"] == "running"
    ):
        running.append(Path(awaited))
    return running


def _form(root: Path, model: str, *, key: str) -> None:
    """Folder and button; or the sentence that says why there are none."""
    if reason := permission.why_not("Starting a build from this page"):
        st.caption(f"{reason} The command works.")
        return
    line = {"horizontal": True, "vertical_alignment": "bottom", "gap": "small"}
    with st.form(key, border=False), st.container(**line):  # type: ignore[arg-type]
        folder = st.text_input(
            "Your folder", placeholder="/home/me/photos", label_visibility="collapsed"
        )
        given = None
        if permission.open_to_network():
            given = st.text_input(
                "Token", type="password", placeholder="token", width=120,
                label_visibility="collapsed",
            )  # fmt: skip
        pressed = st.form_submit_button("Make its map", type="primary")
    if error := st.session_state.pop("build error", None):
        words.error(error)
    if not pressed:
        return
    try:
        permission.check(given)
        start(root, model, folder.strip())
    except UserError as error:
        words.error(error)
        return
    st.rerun()


def start(
    root: Path,
    model: str,
    data: str,
    patches: int | None = None,
    *,
    name: str = "",
    opens: bool = True,
) -> Path:
    """Start building a gallery of `data` and wait for it on the page; returns its folder.

    `name`: "" for one of model and data; `opens`: whether it is shown as soon as it is there.
    Raises `UserError`.
    """
    if name:
        check_name("gallery", name)
    data = permission.data_of(root, data)
    weights = root / model  # of a file, wherever this process was started
    name = name or gallery_name(str(weights) if weights.is_file() else model, data)
    out = root / "galleries" / name
    start_build(model, data, out, root=root, patches=patches)
    st.session_state.update({"awaited": str(out), "opens": opens})
    return out
