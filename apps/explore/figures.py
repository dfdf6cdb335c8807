"""Small pictures that were computed, with captions: published once, shown in a grid."""

import html
import io
from collections.abc import Sequence

import numpy as np
import streamlit as st
from PIL import Image

from explore.server import publish

Figure = tuple[Sequence[np.ndarray], str]  # pictures that belong together, uint8; what they are


def show(figures: Sequence[Figure], *, size: str = "small", blocks: bool = False) -> None:
    """A grid of figures. `size`: "small" or "large"; `blocks`: draw pixels as squares."""
    items = [
        f"<figure>{''.join(_image(one, caption) for one in pictures)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for pictures, caption in figures
    ]
    st.html(f"<div class='figures {size}{' blocks' if blocks else ''}'>{''.join(items)}</div>")


def _image(picture: np.ndarray, caption: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    height, width = picture.shape[:2]
    return (
        f"<img src='{publish(stream.getvalue(), 'image/png')}' alt='{html.escape(caption)}' "
        f"width='{width}' height='{height}'>"
    )
