"""Attention over a clip: a video, an animation or several pictures in, a clip out."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.questions import Question, Withdrawn
from dino_core.errors import UserError
from dino_core.lenses import video
from dino_core.lenses.frames import Cancelled, Frames, read_frames

MOST_FRAMES = 240
MOST_SECONDS = 60.0
MOST_BYTES = 200 * 10**6  # of all files of a clip
LONG_SIDE = 640  # pixels of a frame that is shown
KINDS = {".mp4": "video/mp4", ".webp": "image/webp"}


def clip(desk: Desk, question: Question) -> dict[str, Any]:
    """The clip under the attention of one head or the mean, on one color scale."""
    most = question.whole("frames", 1, MOST_FRAMES)
    ending = _ending()
    with _arrived(desk, question) as arrived:
        frames = read_frames(
            arrived.path,
            every=question.whole("every", 1, 60),
            max_frames=most,
            max_seconds=MOST_SECONDS,
            max_side=_side(ending, most),
        )
        try:
            looked, made = _made(desk, question, frames, arrived.folder / f"attention{ending}")
        except Cancelled:
            raise Withdrawn from None
        count = len(looked.maps)
        return {
            "clip": encoded(made.read_bytes()),
            "kind": KINDS[ending],
            "told": f"{count} {'frame' if count == 1 else 'frames'} at {looked.rate:.3g} a second, "
            "one color scale",
            "note": arrived.in_their_words(frames.note).removeprefix(f"{arrived.name}: "),
        }


def _made(desk: Desk, question: Question, frames: Frames, path: Path) -> tuple[video.Clip, Path]:
    """The clip that was looked at, and where it is written; raises `Cancelled`."""
    job = desk.job
    looked = video.look_at_clip(
        desk.model,
        frames,
        layer=question.whole("layer", -1, 1_000),
        head=question.whole("head") if "head" in question else None,
        size=desk.scene.size,
        smoothing=question.number("smoothing", 0, video.MAX_SMOOTHING),
        progress=job.tell,
        cancelled=lambda: job.cancelled,
    )
    made = video.write(
        looked,
        path,
        opacity=question.number("opacity", 0, 1),
        colormap=question.text("colormap"),
        progress=lambda done, total, _: job.tell(done, total, "drawing frames"),
        cancelled=lambda: job.cancelled,
    )
    return looked, made


@dataclass(frozen=True)
class _Arrived:
    """A visitor's files in a folder of ours, and what the visitor calls them."""

    folder: Path
    path: Path  # the film, or a folder of its frames
    names: dict[Path, str]

    @property
    def name(self) -> str:
        return self.names[self.path]

    def in_their_words(self, sentence: str) -> str:
        """The sentence with the visitor's names for ours, and no path of ours left in it."""
        for ours in sorted(self.names, key=lambda path: -len(str(path))):
            sentence = sentence.replace(str(ours), self.names[ours])
        return sentence.replace(f"{self.folder}{os.sep}", "").replace(str(self.folder), "the clip")


@contextmanager
def _arrived(desk: Desk, question: Question) -> Iterator[_Arrived]:
    """The visitor's clip, or a folder of their pictures, in a folder that goes at the end.

    They get names of ours without the visitor's ending: the content says what a file is.
    """
    files = [desk.bench.upload_named(one) for one in question.parts("files", MOST_FRAMES)]
    files = [(path.resolve(), _printable(name)) for path, name in files]
    _check(files)
    with tempfile.TemporaryDirectory(prefix="dino-clip-", dir=desk.bench.uploads) as made:
        folder = Path(made)
        if len(files) == 1:
            path = folder / "film"
            names = {path: files[0][1]}
        else:
            path = folder / "frames"
            path.mkdir()
            # The ending stands for any picture's: it makes the reader of folders look at it.
            names = {path / f"{at:04}.png": name for at, (_, name) in enumerate(files)}
        for (upload, name), ours in zip(files, names, strict=True):
            _take(upload, ours, name)
        arrived = _Arrived(folder, path, {path: f"{len(files)} pictures"} | names)
        try:
            yield arrived
        except UserError as error:
            raise UserError(arrived.in_their_words(str(error))) from None


def _check(files: list[tuple[Path, str]]) -> None:
    """Raise `UserError` where a file is named twice, or all are too large together."""
    seen: set[Path] = set()
    for path, name in files:
        if path in seen:
            raise UserError(f"{name}: named twice; choose each picture once")
        seen.add(path)
    size = sum(_size(path, name) for path, name in files)
    if size > MOST_BYTES:
        raise UserError(
            f"{size / 1e6:,.0f} MB in {len(files)} files, the limit is {MOST_BYTES / 1e6:,.0f} MB; "
            "choose fewer or smaller pictures"
        )


def _size(path: Path, name: str) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise UserError(f"{name}: did not arrive; choose it again") from None


def _take(upload: Path, ours: Path, name: str) -> None:
    """A second name for the upload, which may be removed meanwhile; a copy where disks differ."""
    try:
        try:
            os.link(upload, ours)
        except OSError:
            shutil.copyfile(upload, ours)
    except OSError as error:
        raise UserError(f"{name}: cannot be kept here ({error.strerror}); try again") from None


def _printable(name: str) -> str:
    """A visitor's name for a file, as it may stand in a sentence."""
    return "".join(sign for sign in name if sign.isprintable()).strip() or "a file without name"


def _ending() -> str:
    """MP4 where PyAV is installed, else an animated WebP."""
    return ".mp4" if importlib.util.find_spec("av") else ".webp"


def _side(ending: str, frames: int) -> int:
    """The longest side of a frame, in pixels; so many square ones of it fit into an animation."""
    if ending == ".mp4":
        return LONG_SIDE
    return min(LONG_SIDE, int((video.MAX_HELD / (3 * frames)) ** 0.5))
