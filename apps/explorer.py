"""The explorer: a gallery's map, its images and their nearest neighbors, in a browser.

    streamlit run apps/explorer.py
    streamlit run apps/explorer.py -- --gallery galleries/scenes --model starter --root DIR

Runs from any working directory, installed or not. This file is the server: Streamlit's own, plus
the routes by which a page fetches points and thumbnails (`explore/server.py`). The page itself is
`explore/page.py`. Streamlit's settings (this machine only, no telemetry, the theme) are in
`.streamlit/config.toml` beside this file.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):  # the page's parts, and dino_core where it is not installed
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import streamlit as st
from explore import server

app = st.App(HERE / "explore" / "page.py", routes=server.ROUTES, lifespan=server.lifespan)
