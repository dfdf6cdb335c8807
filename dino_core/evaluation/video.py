"""Video segmentation: how well patch tokens follow objects through a video, untrained on it.

Published protocol (DINO, section 4.2.2, on DAVIS 2017): given the true masks of the first frame,
labels are carried from frame to frame by the likeness of patch tokens, and what arrives is scored
by region J and boundary F.

    result = evaluate(load_model("starter"), Path("davis"))
    print(result.table())

Step by step, as in the published `eval_video_segmentation` and `davis2017-evaluation`:

- A frame's short side becomes 480 px, the other side keeps the shape, rounded down to a multiple of
  64 px; bilinear without antialiasing. Patch tokens of the last block, after the norm, of length 1.
- The first frame's mask is reduced to one label a patch, to nearest neighbors, one channel a label.
- Context: the first frame and the last 7, which keep the soft labels they were given, at patch
  resolution. Affinity exp(cosine / 0.1), within 12 rows and columns; the 5 best of the whole
  context (ties with the fifth as well) weigh its labels. See `propagation.py`.
- Only for the picture are labels enlarged bilinearly to the fed size; each channel is stretched to
  0..1 over the frame, the largest wins, and that map is resized to the frame, nearest neighbors.
- J and F of each object of the first mask in every frame but the first and the last; mean, recall
  and decay over an object's frames; then the mean over all objects, whatever video they are in.

Ours differs where the published code is wrong or stops: red is divided by 0.229 (there 0.228) and
void pixels are not scored (there they are background), unless `as_published`; square frames (fed
lying, their mask standing, there); other patch sizes, other `size` (the 64 px shrink with it);
frames that shrink by more than half again are antialiased; gray masks; gaps in the numbers of
objects (there a missing number is an object that is always right); frames without a mask; frames of
another size than their video's first, which are fed at its size, with a note.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.errors import UserError
from dino_core.evaluation.davis import Davis, open_davis
from dino_core.evaluation.passes import Passing, each, weights_and_shape
from dino_core.evaluation.propagation import Propagation
from dino_core.evaluation.results import Result, named
from dino_core.evaluation.video_frames import SIZE
from dino_core.evaluation.video_scores import How, score_video, sentences
from dino_core.gallery.progress import Progress
from dino_core.measures.segmentation import summary
from dino_core.models import Model, untrained


@dataclass(frozen=True)
class ObjectScore:
    """One object of one video: shares 0..1, decay below 0 where it gets better."""

    name: str  # of the video
    object: int  # its number in the masks
    j: float  # mean over the frames
    f: float
    jf: float  # the mean of both
    j_recall: float  # share of frames above 0.5
    f_recall: float
    j_decay: float  # mean of the first quarter of the frames less that of the last
    f_decay: float
    frames: int  # scored
    best_frame: str  # the name, without ending, of the frame with the largest J
    worst_frame: str


@dataclass(frozen=True, kw_only=True)
class VideoResult(Result):
    """J, F and their mean over all objects, as shares 0..1; `jf_mean` is the published figure."""

    jf_mean: float
    j_mean: float
    j_recall: float
    j_decay: float
    f_mean: float
    f_recall: float
    f_decay: float
    per_sequence: list[ObjectScore]
    best: list[str]  # videos by the mean J&F of their objects, best first
    worst: list[str]  # the same, worst first
    videos: int
    objects: int
    frames: int  # scored, each once for each object
    data: str
    data_hash: str
    size: int  # short side, pixels
    settings: Propagation
    as_published: bool

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(len(name) for name in [*rows, "model"])
        columns = ("J&F", "J mean", "recall", "decay", "F mean", "recall", "decay")
        lines = [f"{'model':{width}}" + "".join(f"{name:>9}" for name in columns)]
        for name, row in rows.items():
            values = [row.jf_mean, row.j_mean, row.j_recall, row.j_decay]
            values += [row.f_mean, row.f_recall, row.f_decay]
            lines.append(f"{name:{width}}" + "".join(f"{value:9.1%}" for value in values))
        videos = "1 video" if self.videos == 1 else f"{self.videos:,} videos"
        objects = "1 object" if self.objects == 1 else f"{self.objects:,} objects"
        lines.append(f"means over {objects} in {videos}, frames of {self.size} px")
        if self.videos > 1:
            lines.append(f"best: {self.best[0]}; worst: {self.worst[0]}")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    data: Path | str,
    *,
    size: int = SIZE,
    frames: int = Propagation.frames,
    radius: int = Propagation.radius,
    topk: int = Propagation.topk,
    temperature: float = Propagation.temperature,
    videos: Sequence[str] | None = None,
    as_published: bool = False,
    out: Path | None = None,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> VideoResult:
    """Follow the objects of the first frames through the videos of `data`, a folder as DAVIS's.

    `size`: short side in pixels; `frames`: last frames in the context, beside the first; `radius`:
    in patches, 0 for none; `videos`: these alone; `out`: a folder for the found masks, as palette
    PNGs that the published evaluator reads (`model`'s, not the untrained one's). Raises `UserError`
    for settings out of range, another layout, or when nothing can be scored.
    """
    _check(model, size, frames, radius, topk, temperature)
    davis = open_davis(data, videos)
    carry = Propagation(frames=frames, radius=radius, topk=topk, temperature=temperature)
    how = How(size, carry, as_published, None if out is None else Path(out).absolute())
    data_hash = davis.content_hash()
    result = _score(model, davis, data_hash, how, passing)
    if random_init:
        baseline = _score(untrained(model), davis, data_hash, replace(how, out=None), passing)
        result = replace(result, random_init=replace(baseline, notes=[]))
    return result


def _score(model: Model, davis: Davis, data_hash: str, how: How, passing: Passing) -> VideoResult:
    """The protocol for one model."""
    progress = _Frames(passing.progress, [len(video.frames) for video in davis.videos])
    settings = {
        **weights_and_shape(model),
        "data_hash": data_hash,
        "size": how.size,
        **asdict(how.carry),
        "as_published": how.as_published,
        "out": None if how.out is None else str(how.out),
    }
    found = each(
        "video",
        settings,
        [video.name for video in davis.videos],
        lambda i: score_video(model, davis.videos[i], how, progress.step),
        replace(passing, progress=progress),
        f"Videos of {model.spec}",
    )
    scores = [
        _object_score(video.name, one, value["frames"])
        for video, value in zip(davis.videos, found, strict=True)
        for one in value["objects"]
    ]
    notes = [*davis.notes, *sentences([note for value in found for note in value["notes"]])]
    notes += _not_written(davis, found, how.out)
    if not scores:
        raise UserError(f"{davis.root}: nothing there can be scored; {'; '.join(notes)}")
    return VideoResult(
        **_figures(scores),
        model=model.spec,
        model_hash=model.hash,
        data=str(davis.root),
        data_hash=data_hash,
        size=how.size,
        settings=how.carry,
        as_published=how.as_published,
        notes=notes,
    )


def _object_score(name: str, one: dict[str, Any], frames: list[str]) -> ObjectScore:
    j, f = summary(np.array(one["j"])), summary(np.array(one["f"]))
    return ObjectScore(
        name=name,
        object=one["object"],
        j=j.mean,
        f=f.mean,
        jf=(j.mean + f.mean) / 2,
        j_recall=j.recall,
        f_recall=f.recall,
        j_decay=j.decay,
        f_decay=f.decay,
        frames=len(frames),
        best_frame=frames[int(np.argmax(one["j"]))],
        worst_frame=frames[int(np.argmin(one["j"]))],
    )


def _figures(scores: list[ObjectScore]) -> dict[str, Any]:
    """The fields of a `VideoResult` that are read off its objects' scores."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(score, name) for score in scores]))

    ranked = _ranked(scores)
    return {
        "jf_mean": mean("jf"),
        "j_mean": mean("j"),
        "j_recall": mean("j_recall"),
        "j_decay": mean("j_decay"),
        "f_mean": mean("f"),
        "f_recall": mean("f_recall"),
        "f_decay": mean("f_decay"),
        "per_sequence": scores,
        "best": ranked,
        "worst": ranked[::-1],
        "videos": len(ranked),
        "objects": len(scores),
        "frames": sum(score.frames for score in scores),
    }


def _ranked(scores: list[ObjectScore]) -> list[str]:
    """The videos by the mean J&F of their objects, best first."""
    of_video = defaultdict(list)
    for score in scores:
        of_video[score.name].append(score.jf)
    return sorted(of_video, key=lambda name: -float(np.mean(of_video[name])))


def _not_written(davis: Davis, found: list[dict[str, Any]], out: Path | None) -> list[str]:
    """What to do where scores were kept from before, and their masks have gone since."""
    pairs = zip(davis.videos, found, strict=True)
    scored = [video.name for video, value in pairs if value["objects"]]
    gone = [name for name in scored if out is not None and not (out / name).is_dir()]
    if not gone:
        return []
    return [
        f"{out}: lacks {named(gone)}, whose scores were kept; name another folder to write them"
    ]


class _Frames:
    """Progress in frames: a video can take minutes, and should be seen to go on."""

    def __init__(self, say: Progress, lengths: Sequence[int]) -> None:
        self.say, self.total = say, sum(lengths)
        self.before, self.message = 0, ""

    def __call__(self, done: int, total: int, message: str) -> None:
        """As `each` says it, in videos; each counts as the mean one."""
        self.before, self.message = self.total * done // max(total, 1), message
        self.say(self.before, self.total, message)

    def step(self, frame: int) -> None:
        """Frame `frame` of the video in work is done."""
        self.say(min(self.before + frame, self.total), self.total, self.message)


def _check(
    model: Model, size: int, frames: int, radius: int, topk: int, temperature: float
) -> None:
    patch = model.backbone.patch_size
    if size < patch:
        raise UserError(f"size {size}: smaller than one patch of {patch} px; use {patch} or more")
    if frames < 0 or radius < 0:
        name, value = ("frames", frames) if frames < 0 else ("radius", radius)
        raise UserError(f"{name} {value}: must be 0 or more")
    if topk < 1:
        raise UserError(f"topk {topk}: must be 1 or more")
    if not temperature > 0:
        raise UserError(f"temperature {temperature}: must be above 0")
