"""Attention over a clip: a video, an animation or several pictures in, a clip out."""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.questions import Question
from dino_core.errors import UserError
from dino_core.lenses import video

MOST_FRAMES = 240
MOST_SECONDS = 60.0
LONG_SIDE = 640  # pixels of a frame that is shown
KINDS = {".mp4": "video/mp4", ".webp": "image/webp"}


def clip(desk: Desk, question: Question) -> dict[str, Any]:
    """The clip under the attention of one head or the mean, on one color scale throughout."""
    job = desk.job
    with _arrived(desk, question) as path:
        frames = video.read_frames(
            path,
            every=question.whole("every", 1, 60),
            max_frames=question.whole("frames", 1, MOST_FRAMES),
            max_seconds=MOST_SECONDS,
            max_side=LONG_SIDE,
        )
        try:
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
                path.with_name(f"attention{_ending()}"),
                opacity=question.number("opacity", 0, 1),
                colormap=question.text("colormap"),
                progress=lambda done, total, _: job.tell(done, total, "drawing frames"),
                cancelled=lambda: job.cancelled,
            )
        except video.Cancelled:
            raise UserError("cancelled; nothing was kept") from None
        return {
            "clip": encoded(made.read_bytes()),
            "kind": KINDS[made.suffix],
            "told": f"{len(looked.maps)} frames at {looked.rate:.3g} a second, one color scale",
            "note": frames.note.removeprefix(f"{path}: "),
        }


@contextmanager
def _arrived(desk: Desk, question: Question) -> Iterator[Path]:
    """The visitor's clip, or a folder of their pictures, in a folder that goes at the end."""
    files = [desk.bench.upload_named(one) for one in question.parts("files", MOST_FRAMES)]
    with tempfile.TemporaryDirectory(prefix="dino-clip-", dir=desk.bench.uploads) as folder:
        if len(files) == 1:
            path, name = files[0]
            arrived = Path(folder, f"clip{Path(name).suffix.lower()[:8]}")
            shutil.copyfile(path, arrived)
        else:
            arrived = Path(folder, "frames")
            arrived.mkdir()
            for number, (path, name) in enumerate(files):
                shutil.copyfile(path, arrived / f"{number:04}{Path(name).suffix.lower()[:8]}")
        try:
            yield arrived
        except UserError as error:  # not the name that it has here
            raise UserError(str(error).replace(str(arrived), files[0][1])) from None


def _ending() -> str:
    """MP4 where PyAV is installed, else an animated WebP."""
    return ".mp4" if importlib.util.find_spec("av") else ".webp"
