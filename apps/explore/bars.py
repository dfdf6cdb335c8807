"""Names with a share of something as bars, in lines of HTML."""

import html
from collections.abc import Iterable

GRAY = "var(--d-line-strong)"
Bar = tuple[str, float, str, str]  # name, share from 0 to 1, CSS color, what a pointer is told


def shares(bars: Iterable[Bar], label: str) -> str:
    """A list of bars; `label` says of what to those who do not see them."""
    lines = [
        f"<li title='{html.escape(told)}'><span>{html.escape(name)}</span><i style='--share:"
        f"{share:.4f};--color:{color}'></i><b>{_percent(share)}</b></li>"
        for name, share, color, told in bars
    ]
    return f"<ul class='shares' aria-label='{html.escape(label)}'>{''.join(lines)}</ul>"


def _percent(share: float) -> str:
    return "&lt;1%" if 0 < share < 0.005 else f"{share:.0%}"
