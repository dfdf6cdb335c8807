"""Starting a run from the page: a form made of the recipe's own fields, and who may send it.

The run is a process of its own (`dino_core.training.launch`): it outlives the page and the server.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from dino_core.errors import UserError
from dino_core.files import check_name
from dino_core.training.durations import seconds_of
from dino_core.training.launch import start
from explore import address, loading, permission, words
from explore.here import Here

if TYPE_CHECKING:
    from dino_core.training.settings import Setting

GROUPS = {
    "": "The run",
    "backbone": "Backbone",
    "crops": "Crops and colors",
    "head": "Projection head",
    "optim": "Optimizer",
    "teacher": "Teacher",
    "quality": "Quality checks",
    "guards": "Guards",
    "feed": "Feed",
}
COLUMNS = 3
AUTO = "auto"
RECIPES_HELP = (
    "auto chooses from your images and this machine, and its log says why; the others are named "
    "recipes (docs and `scripts/train.py --help` describe them)."
)


def form(here: Here) -> None:
    """Name, data, time, recipe, and every setting of it; or the sentence that says why not."""
    if reason := permission.why_not("Starting a run from this page"):
        command = "python scripts/train.py --data FOLDER --out runs/mine"
        st.caption(f"{reason} A terminal works: {command}")
        return
    if not loading.libraries_ready():
        loading.begin()
        _wait()
        return
    from dino_core.training.recipe import Recipe
    from dino_core.training.recipes import RECIPES
    from dino_core.training.settings import settings

    name = address.choice("Recipe", "recipe", [AUTO, *RECIPES], width=260, help=RECIPES_HELP)
    found = settings(RECIPES.get(name, Recipe()))
    with st.form("start", border=False):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            data = st.text_input("Images", placeholder="/home/me/photos", key="run data")
            out = st.text_input("Name of the run", placeholder="mine", key="run name", width=200)
            time = st.text_input(
                "Time", placeholder="30m", key="run time", width=120,
                help="30m, 2h: as many steps as fit. Empty: as long as the recipe says.",
            )  # fmt: skip
            given = None
            if permission.open_to_network():
                given = st.text_input("Token", type="password", width=120)
            pressed = st.form_submit_button("Start", type="primary")
        st.html(
            "<p class='facts'>What is left empty below is "
            + ("chosen for your images" if name == AUTO else "as in the recipe")
            + "; what you enter has the last word.</p>"
        )
        typed: dict[str, Any] = {}
        for group, title in GROUPS.items():
            with st.expander(title):
                typed |= _fields([one for one in found if one.group == group], name)
    if pressed:
        _start(here, name, typed, data.strip(), out.strip(), time.strip(), given)


def _fields(found: "Sequence[Setting]", recipe: str) -> dict[str, Any]:
    """A field for each setting; returns those that were filled in."""
    typed: dict[str, Any] = {}
    columns = st.columns(COLUMNS)
    for place, setting in enumerate(found):
        title = setting.name.rpartition(".")[2].replace("_", " ")
        title = title[:1].upper() + title[1:]
        how: dict[str, Any] = {"key": f"setting {setting.name}", "help": setting.help or None}
        hint = f"{AUTO}" if recipe == AUTO else setting.spelled() or "chosen by itself"
        with columns[place % COLUMNS]:
            if setting.kind in ("choice", "flag"):
                choices = setting.choices or ("yes", "no")
                value = st.selectbox(title, choices, index=None, placeholder=hint, **how)
            else:
                value = st.text_input(title, placeholder=hint, **how)
        if value:
            typed[setting.name] = value
    return typed


@st.fragment(run_every=0.5)
def _wait() -> None:
    if loading.libraries_ready():
        st.rerun()
    st.html("<p class='loading'>Loading torch and timm …</p>")


def _start(
    here: Here,
    recipe: str,
    typed: dict[str, Any],
    data: str,
    out: str,
    time: str,
    given: str | None,
) -> None:
    from dino_core.training.recipe import Recipe
    from dino_core.training.recipes import RECIPES
    from dino_core.training.settings import changed

    try:
        permission.check(given)
        changed(RECIPES.get(recipe, Recipe()), typed)  # what cannot be is said before anything runs
        data = permission.data_of(here.root, data)
        check_name("run", out)
        seconds = seconds_of(time) if time else None
        path = here.root / "runs" / out
        start(recipe, data, path, root=here.root, changes=typed, max_seconds=seconds, patience=0.0)
    except UserError as error:
        words.error(error)
        return
    address.change(view=None, of=out)
    st.rerun()
