"""A long list in pages, the number of the page in the address."""

import streamlit as st

from explore import address


def pager(name: str, count: int, size: int) -> slice:
    """Draw the buttons that turn pages, where there are several; returns the entries of this one.

    `name`: of the address value.
    """
    pages = max(1, -(-count // size))
    page = address.whole(name, 1, pages, 1)
    first = (page - 1) * size
    if pages > 1:
        with st.container(key=f"pager_{name}", horizontal=True, vertical_alignment="center"):
            st.html(f"<p class='facts'>{first + 1:,}–{min(first + size, count):,} of {count:,}</p>")
            for label, to, tip in (("‹", page - 1, "Previous page"), ("›", page + 1, "Next page")):
                st.button(
                    label, key=f"{name} {label}", disabled=not 1 <= to <= pages, help=tip,
                    on_click=address.change, kwargs={name: str(to) if to > 1 else None},
                )  # fmt: skip
    return slice(first, first + size)
