"""The explorer's two own components, the map and the grid of thumbnails, as Streamlit elements.

They are plain JavaScript modules in `apps/assets`, served as files and mounted without a frame.
Props travel as JSON and are small; points and images are fetched by address.
"""

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


def _component(name: str) -> Any:
    css = (ASSETS / f"{name}.css").read_text(encoding="utf-8")
    return st.components.v2.component(
        f"dino_{name}", css=css, js=_LOADER % f"{ASSETS_URL}/{name}.js"
    )


scatter = _component("scatter")
thumbs = _component("thumbs")


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
    return tokens() + (ASSETS / "explorer.css").read_text(encoding="utf-8")
