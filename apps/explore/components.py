"""The explorer's own components, the map, grids of pictures and the lens, as Streamlit elements.

They are plain JavaScript modules in `apps/assets`, served as files and mounted without a frame.
Props travel as JSON and are small; points and images are fetched by address.
"""

import functools
import re
from pathlib import Path
from typing import Any

import streamlit as st

ASSETS = Path(__file__).resolve().parents[1] / "assets"
ASSETS_URL = "explorer/assets"
PANEL = ".st-key-panel"  # the container that scrolls, as the components find it

# Called again, with the same element, whenever the props change; the widget outlives the calls.
_LOADER = """
export default function ({ data, parentElement, setTriggerValue }) {
  const home = parentElement;
  home.tell = setTriggerValue;
  home.widget ??= import(new URL("%s", document.baseURI))
    .then((module) => module.mount(home, (name, value) => home.tell(name, value)));
  home.widget.then((widget) => widget.update(data));
  return () => {
    home.widget?.then((widget) => widget.destroy());
    delete home.widget;
  };
}
"""


def scatter(**how: Any) -> None:
    """The map; `data` are the props of `scatter.js`."""
    _mount("scatter", **how)


def thumbs(**how: Any) -> None:
    """The grid of thumbnails; `data` are the props of `thumbs.js`."""
    _mount("thumbs", **how)


def heads(**how: Any) -> None:
    """The matrix of layers and heads; `data` are the props of `heads.js`."""
    _mount("heads", **how)


def excited(**how: Any) -> None:
    """Pictures under a head's attention; `data` are the props of `excited.js`."""
    _mount("excited", **how)


def attention(**how: Any) -> None:
    """The lens of one image; `data` are the props of `attention.js`."""
    _mount("attention", "overlay", **how)


def emergence(**how: Any) -> None:
    """A run's history with its slider; `data` are the props of `emergence.js`."""
    _mount("emergence", **how)


def _mount(name: str, *more_css: str, **how: Any) -> None:
    """Registered with every run: older Streamlits forget what was registered before their start."""
    css, js = _sources(name, *more_css)
    st.components.v2.component(f"dino_{name}", css=css, js=js)(**how)


@functools.cache
def _sources(name: str, *more_css: str) -> tuple[str, str]:
    styles = [(ASSETS / f"{one}.css").read_text(encoding="utf-8") for one in (*more_css, name)]
    return "".join(styles), _LOADER % f"{ASSETS_URL}/{name}.js"


def tokens() -> str:
    """theme.css's two themes as ONE block of CSS for the page.

    Streamlit marks its theme by `color-scheme` alone, so each color becomes a `light-dark()` pair.
    """
    light, dark = (
        dict(re.findall(r"(--d-[\w-]+):\s*([^;]+);", block))
        for block in re.findall(r"\{([^}]*)\}", (ASSETS / "theme.css").read_text(encoding="utf-8"))
    )
    pairs = []
    for name, value in light.items():
        is_color = value.startswith("#")
        pairs.append(f"{name}: " + (f"light-dark({value}, {dark[name]})" if is_color else value))
    return ".stApp {\n  " + ";\n  ".join(pairs) + ";\n}\n"


def style() -> str:
    """All CSS of the page outside the components."""
    pages = sorted(ASSETS.glob("explore-*.css"))
    return tokens() + "".join(
        path.read_text(encoding="utf-8") for path in [ASSETS / "explorer.css", *pages]
    )
