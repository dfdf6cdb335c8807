"""The page "emergence"."""

import streamlit as st

from explore.here import Here


def show(here: Here) -> None:
    """Draw the page."""
    st.caption("This page is being built.")
