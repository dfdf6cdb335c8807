"""Settings in a few words, for headings: `480 px`, `5 draws`, `as published`."""

from collections.abc import Mapping, Sequence
from typing import Any

from dino_core.evaluation.report.values import counted, plain, whole

FLAGS = {  # by a setting's name: what is said where it is on, and where it is off
    "as_published": ("as published", ""),
    "standardized": ("standardized", "not standardized"),
    "multiscale": ("multiscale", ""),
}
COUNTED = {"epochs": "epoch", "views": "view", "repeats": "draw", "frames": "frame"}
MOST_NAMED = 2  # corruptions; of more the number is said


def in_words(name: str, value: Any) -> str:
    """One setting; "" where nothing has to be said: what is not asked for, or is the default."""
    if value is None or (value == 0 and name == "views"):
        return ""
    if name in FLAGS and isinstance(value, bool):
        return FLAGS[name][not value]
    number = whole(value)
    if number is not None and name in COUNTED:
        return counted(number, COUNTED[name])
    if number is not None and name == "size":
        return f"{number} px"
    if number is not None and name == "whitening_dim":
        return f"whitened to {counted(number, 'dimension')}"
    if name == "layer" and number == -1:
        return "last layer"
    if name == "settings" and isinstance(value, Mapping):  # of how masks are carried
        return ", ".join(filter(None, (in_words(key, one) for key, one in value.items())))
    if name == "corruptions" and isinstance(value, list) and len(value) > MOST_NAMED:
        return counted(len(value), "corruption")
    return in_full(name, value)


def in_full(name: str, value: Any) -> str:
    """One setting by its name, whatever it is."""
    told = f"{value:g}" if isinstance(value, float) else plain(value)
    return f"{name.replace('_', ' ')} {told}"


def heading(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """All settings; in full where in few words they would read as those of one of `others`."""
    told = []
    for name, value in settings.items():
        words = in_words(name, value)
        unlike = [in_words(name, other.get(name)) for other in others if other.get(name) != value]
        told.append(in_full(name, value) if unlike and words in ("", *unlike) else words)
    return ", ".join(filter(None, told))
