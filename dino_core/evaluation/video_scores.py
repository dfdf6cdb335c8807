"""One video followed from its first mask, and J and F of what was found in each frame.

    score_video(model, video, How(480, Propagation()), step)       # {"objects", "frames", "notes"}

What cannot be read, or fits nothing, is left out and noted; `sentences` says it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data import BadImage
from dino_core.data.decode import decode_image
from dino_core.evaluation.davis import Video, read_labels, write_labels
from dino_core.evaluation.mask_files import MAX_ASPECT_ERROR, VOID
from dino_core.evaluation.propagation import Follower, Propagation, one_hot, segmented
from dino_core.evaluation.results import named
from dino_core.evaluation.video_frames import fed_size, patch_features
from dino_core.lenses.render import nearest
from dino_core.measures.segmentation import boundary, region
from dino_core.models import Model

Note = tuple[str, str]  # a key of `SENTENCES`, and a name

# What is said of what is odd or left out, by the key under which `score_video` notes it.
SENTENCES = {
    "nothing": ("video is left out", "videos are left out"),
    "bad": ("unreadable frame is left out", "unreadable frames are left out"),
    "bad mask": ("unreadable mask is not scored", "unreadable masks are not scored"),
    "resized": (
        "frame of another size than its video's first is resized to it",
        "frames of another size than their video's first are resized to it",
    ),
    "unlike": (
        "mask of another size than its video's first is not scored",
        "masks of another size than their video's first are not scored",
    ),
    "unmasked": (
        "video has frames without a mask, which are not scored",
        "videos have frames without a mask, which are not scored",
    ),
    "started late": (
        "video begins with frames without a mask, which are left out",
        "videos begin with frames without a mask, which are left out",
    ),
    "late": (
        "object appears after the first mask and is not scored",
        "objects appear after the first mask and are not scored",
    ),
    "small": (
        "object is lost between the patches of its first frame",
        "objects are lost between the patches of their first frame",
    ),
}


@dataclass(frozen=True)
class How:
    """All that a video's scores depend on beside the model and its files."""

    size: int  # short side, pixels
    carry: Propagation
    as_published: bool = False
    out: Path | None = None  # folder for the masks found


def score_video(
    model: Model, video: Video, how: How, step: Callable[[int], None]
) -> dict[str, Any]:
    """J and F of every object in every scored frame, as JSON: `objects`, `frames`, `notes`.

    `step` is told the number of each frame that is done. Notes are (key of `SENTENCES`, name).
    """
    notes: list[Note] = []
    start, frame, labels = _start(video, notes)
    if frame is None or labels is None:
        return _without_score(video, "has no readable frame with a mask", notes)
    (height, width), (rows, columns) = frame.shape[:2], labels.shape
    if abs((columns / rows) / (width / height) - 1) > MAX_ASPECT_ERROR:
        shapes = f"{columns} x {rows} px, but its frame {width} x {height}"
        return _without_score(video, f"its first mask has another shape ({shapes})", notes)
    objects = [int(number) for number in np.unique(labels) if number not in (0, VOID)]
    if not objects:
        return _without_score(video, "its first mask is empty", notes)
    inner = range(start + 1, len(video.frames) - 1)
    scored = [t for t in inner if video.masks[t] is not None]
    if not scored:
        return _without_score(video, "no mask between the first and the last", notes)
    if len(scored) < len(inner):
        notes.append(("unmasked", f"{video.name} ({len(inner) - len(scored)} frames)"))
    last = len(video.frames) - 1 if how.out else scored[-1]
    scores = _Scores(video, objects, labels.shape, how.as_published)
    masks = _followed(model, video, range(start, last + 1), frame, labels, objects, how, notes)
    for t, found in masks:
        step(t)
        if how.out:
            write_labels(how.out / video.name / f"{video.frames[t].stem}.png", found)
        if start < t <= scored[-1] and video.masks[t] is not None:
            scores.add(t, found, notes)
    if not scores.frames:
        return _without_score(video, "no readable mask between the first and the last", notes)
    return {"objects": scores.objects(), "frames": scores.frames, "notes": notes}


def _start(video: Video, notes: list[Note]) -> tuple[int, np.ndarray | None, np.ndarray | None]:
    """The first frame that can be read and has a mask that can be: its place, pixels, labels."""
    for t, mask in enumerate(video.masks):
        if mask is None:
            continue
        labels = _read_mask(mask, video, notes)
        frame = None if labels is None else _read_frame(video, t, notes)
        if frame is not None:
            if t:
                notes.append(("started late", video.name))
            return t, frame, labels
    return len(video.frames), None, None


def _followed(
    model: Model,
    video: Video,
    span: range,
    frame: np.ndarray,
    labels: np.ndarray,
    objects: list[int],
    how: How,
    notes: list[Note],
) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, labels uint8 of the first mask's shape) of each readable frame, the first its own."""
    size = fed_size(frame.shape[0], frame.shape[1], how.size, model.backbone.patch_size)
    first = patch_features(model, frame, *size, as_published=how.as_published)
    channels = one_hot(labels, objects, (first.shape[0], first.shape[1])).to(model.device)
    lost = (~channels.bool().any(dim=0).any(dim=0)).tolist()[1:]
    notes += [
        ("small", f"{video.name} object {number}")
        for number, gone in zip(objects, lost, strict=True)
        if gone
    ]
    follower = Follower(first, channels, how.carry)
    number_of = np.array([0, *objects], np.uint8)
    yield span[0], labels
    for t in span[1:]:
        image = _read_frame(video, t, notes)
        if image is None:
            continue
        if image.shape != frame.shape:
            name = f"{video.name}/{video.frames[t].name}"
            notes.append(("resized", f"{name} ({image.shape[1]} x {image.shape[0]} px)"))
        features = patch_features(model, image, *size, as_published=how.as_published)
        found = segmented(follower.step(features), *size)
        yield t, nearest(number_of[found.cpu().numpy()], *labels.shape)


class _Scores:
    """J and F of a video's objects, frame by frame."""

    def __init__(
        self, video: Video, objects: list[int], shape: tuple[int, ...], as_published: bool
    ) -> None:
        self.video, self.numbers, self.shape = video, objects, shape
        self.as_published = as_published
        self.frames: list[str] = []
        self.values: dict[int, tuple[list[float], list[float]]] = {o: ([], []) for o in objects}
        self.late: set[int] = set()

    def add(self, t: int, found: np.ndarray, notes: list[Note]) -> None:
        """Score the found labels of frame `t`, uint8 [H, W]."""
        path = self.video.masks[t]
        assert path is not None
        true = _read_mask(path, self.video, notes)
        if true is None:
            return
        if true.shape != self.shape:
            notes.append(("unlike", f"{self.video.name}/{path.name}"))
            return
        valid = None if self.as_published else true != VOID
        for number, (j, f) in self.values.items():
            j.append(region(found == number, true == number, valid))
            f.append(boundary(found == number, true == number, valid))
        self.frames.append(self.video.frames[t].stem)
        for number in set(np.unique(true).tolist()) - {0, VOID, *self.numbers} - self.late:
            notes.append(("late", f"{self.video.name} object {number}"))
            self.late.add(number)

    def objects(self) -> list[dict[str, Any]]:
        return [{"object": o, "j": j, "f": f} for o, (j, f) in self.values.items()]


def _read_frame(video: Video, t: int, notes: list[Note]) -> np.ndarray | None:
    try:
        return decode_image(video.frames[t])
    except BadImage as error:
        notes.append(("bad", f"{video.name}/{video.frames[t].name} ({error.reason})"))
        return None


def _read_mask(path: Path, video: Video, notes: list[Note]) -> np.ndarray | None:
    try:
        return read_labels(path)
    except BadImage as error:
        notes.append(("bad mask", f"{video.name}/{path.name} ({error.reason})"))
        return None


def _without_score(video: Video, why: str, notes: list[Note]) -> dict[str, Any]:
    return {"objects": [], "frames": [], "notes": [*notes, ("nothing", f"{video.name} ({why})")]}


def sentences(notes: Sequence[Sequence[str]]) -> list[str]:
    """One sentence for each kind of note: how many, and the first names."""
    said = []
    for key, (one, many) in SENTENCES.items():
        names = list(dict.fromkeys(name for kind, name in notes if kind == key))
        if names:
            said.append(f"{len(names):,} {one if len(names) == 1 else many}: {named(names)}")
    return said
