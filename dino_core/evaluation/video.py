"""Video segmentation: how well patch tokens follow objects through a video, untrained on it.

Published protocol (DINO, section 4.2.1, on DAVIS 2017): given the true masks of the first frame,
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
objects (there a missing number is an object that is always right); frames without a mask.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_core.data import BadImage
from dino_core.data.decode import decode_image
from dino_core.errors import UserError
from dino_core.evaluation.davis import VOID, Davis, Video, open_davis, read_labels, write_labels
from dino_core.evaluation.passes import Passing, each, weights_and_shape
from dino_core.evaluation.propagation import Follower, Propagation, one_hot, segmented
from dino_core.gallery.progress import Progress
from dino_core.lenses.render import nearest
from dino_core.measures.segmentation import boundary, region, summary
from dino_core.models import Model, preprocess, untrained
from dino_core.models.info import IMAGENET_STD

SIZE = 480
STEP = 64  # pixels at 480: the long side is a multiple of it
PUBLISHED_STD = (0.228, 0.224, 0.225)  # the first was meant to be 0.229
ALIASED = 1.5  # frames that shrink by more are antialiased; DAVIS's own shrink by 1.15 at most
CELL = 32  # pixels: what the sides of images are multiples of where a network has no patches
MAX_TOKENS = 65_536  # of a frame; the context holds nine of them
SHOWN = 3  # names in a note

# What is said of what was left out, by the key under which `_score_video` lists it.
SENTENCES = {
    "nothing": ("video is left out", "videos are left out"),
    "bad": ("unreadable frame is left out", "unreadable frames are left out"),
    "bad mask": ("unreadable mask is not scored", "unreadable masks are not scored"),
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


@dataclass(frozen=True)
class VideoResult:
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
    model: str
    model_hash: str
    data: str
    data_hash: str
    size: int  # short side, pixels
    settings: Propagation
    as_published: bool
    notes: list[str] = field(default_factory=list)  # sentences: what was left out and why
    random_init: "VideoResult | None" = None  # the same for the untrained backbone

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = {self.model: self} | ({"untrained": self.random_init} if self.random_init else {})
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


@dataclass(frozen=True)
class _How:
    """All that a video's scores depend on beside the model and its files."""

    size: int
    carry: Propagation
    as_published: bool
    out: Path | None


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
    how = _How(size, carry, as_published, None if out is None else Path(out).absolute())
    data_hash = davis.content_hash()
    result = _score(model, davis, data_hash, how, passing)
    if random_init:
        baseline = _score(untrained(model), davis, data_hash, replace(how, out=None), passing)
        result = replace(result, random_init=replace(baseline, notes=[]))
    return result


def fed_size(height: int, width: int, size: int, patch: int) -> tuple[int, int]:
    """(height, width) in pixels that a frame is fed at: short side `size`, in whole patches.

    The long side (the width, of a square) is rounded down to a multiple of 64 px at 480, of as much
    less at smaller sizes; in near squares it ends below the other. Raises `UserError` where that
    makes too many patches.
    """
    unit = CELL if patch == 1 else patch
    step = max(int(STEP * size / SIZE) // unit, 1) * unit
    short = max(size // unit, 1) * unit
    long = max(int(size * max(height, width) / min(height, width)) // step, 1) * step
    if short * long > MAX_TOKENS * unit**2:
        raise UserError(
            f"frames of {width} x {height} px make more than {MAX_TOKENS:,} patches of {unit} px "
            f"at size {size}; use a smaller one"
        )
    return (long, short) if height > width else (short, long)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, C] bilinear at another size; antialiased where it shrinks a lot."""
    if image.shape[:2] == (height, width):
        return image
    shrink = max(image.shape[0] / height, image.shape[1] / width)
    x_CHW = torch.from_numpy(image).permute(2, 0, 1).float()
    antialias = shrink > ALIASED
    x_CHW = F.interpolate(x_CHW[None], (height, width), mode="bilinear", antialias=antialias)[0]
    return x_CHW.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def patch_features(
    model: Model, frame: np.ndarray, height: int, width: int, *, as_published: bool = False
) -> Tensor:
    """The last block's patch tokens of a frame, uint8 [H, W, C], fed at the size given.

    float32 [h, w, D] of length 1, on the model's device.
    """
    info = model.info
    if as_published and info.std == IMAGENET_STD:
        info = replace(info, std=PUBLISHED_STD)
    pixels = preprocess.normalize(resized(frame, height, width), info).to(model.device)
    backbone = model.backbone
    with torch.inference_mode():
        tokens_ND = backbone.tokens(pixels[None])[0, backbone.num_prefix_tokens :].float()
        return F.normalize(tokens_ND, dim=-1).view(*backbone.grid(height, width), -1)


# --- one video


def _score_video(model: Model, video: Video, how: _How, progress: "_Frames") -> dict[str, Any]:
    """J and F of every object in every scored frame, as JSON: `objects`, `frames`, `notes`."""
    notes: list[tuple[str, str]] = []
    start, frame, labels = _start(video, notes)
    if frame is None or labels is None:
        return _without_score(video, "has no readable frame with a mask", notes)
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
        progress.step(t)
        if how.out:
            write_labels(how.out / video.name / f"{video.frames[t].stem}.png", found)
        if start < t <= scored[-1] and video.masks[t] is not None:
            scores.add(t, found, notes)
    if not scores.frames:
        return _without_score(video, "no readable mask between the first and the last", notes)
    return {"objects": scores.objects(), "frames": scores.frames, "notes": notes}


def _start(
    video: Video, notes: list[tuple[str, str]]
) -> tuple[int, np.ndarray | None, np.ndarray | None]:
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
    how: _How,
    notes: list[tuple[str, str]],
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

    def add(self, t: int, found: np.ndarray, notes: list[tuple[str, str]]) -> None:
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


def _read_frame(video: Video, t: int, notes: list[tuple[str, str]]) -> np.ndarray | None:
    try:
        return decode_image(video.frames[t])
    except BadImage as error:
        notes.append(("bad", f"{video.name}/{video.frames[t].name} ({error.reason})"))
        return None


def _read_mask(path: Path, video: Video, notes: list[tuple[str, str]]) -> np.ndarray | None:
    try:
        return read_labels(path)
    except BadImage as error:
        notes.append(("bad mask", f"{video.name}/{path.name} ({error.reason})"))
        return None


def _without_score(video: Video, why: str, notes: list[tuple[str, str]]) -> dict[str, Any]:
    return {"objects": [], "frames": [], "notes": [*notes, ("nothing", f"{video.name} ({why})")]}


# --- all videos


def _score(model: Model, davis: Davis, data_hash: str, how: _How, passing: Passing) -> VideoResult:
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
        lambda i: _score_video(model, davis.videos[i], how, progress),
        replace(passing, progress=progress),
        f"Videos of {model.spec}",
    )
    scores = [
        _object_score(video.name, one, value["frames"])
        for video, value in zip(davis.videos, found, strict=True)
        for one in value["objects"]
    ]
    notes = [*davis.notes, *_sentences([note for value in found for note in value["notes"]])]
    notes += _not_written(davis, found, how.out)
    if not scores:
        raise UserError(f"{davis.root}: nothing there can be scored; {'; '.join(notes)}")
    ranked = _ranked(scores)
    return VideoResult(
        jf_mean=_mean(scores, "jf"),
        j_mean=_mean(scores, "j"),
        j_recall=_mean(scores, "j_recall"),
        j_decay=_mean(scores, "j_decay"),
        f_mean=_mean(scores, "f"),
        f_recall=_mean(scores, "f_recall"),
        f_decay=_mean(scores, "f_decay"),
        per_sequence=scores,
        best=ranked,
        worst=ranked[::-1],
        videos=len(ranked),
        objects=len(scores),
        frames=sum(score.frames for score in scores),
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


def _mean(scores: list[ObjectScore], name: str) -> float:
    return float(np.mean([getattr(score, name) for score in scores]))


def _ranked(scores: list[ObjectScore]) -> list[str]:
    """The videos by the mean J&F of their objects, best first."""
    of_video = defaultdict(list)
    for score in scores:
        of_video[score.name].append(score.jf)
    return sorted(of_video, key=lambda name: -float(np.mean(of_video[name])))


def _sentences(notes: Sequence[Sequence[str]]) -> list[str]:
    """One sentence for each kind of note: how many, and the first names."""
    said = []
    for key, (one, many) in SENTENCES.items():
        names = list(dict.fromkeys(name for kind, name in notes if kind == key))
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            said.append(f"{len(names):,} {one if len(names) == 1 else many}: {shown}")
    return said


def _not_written(davis: Davis, found: list[dict[str, Any]], out: Path | None) -> list[str]:
    """What to do where scores were kept from before, and their masks have gone since."""
    pairs = zip(davis.videos, found, strict=True)
    scored = [video.name for video, value in pairs if value["objects"]]
    gone = [name for name in scored if out is not None and not (out / name).is_dir()]
    if not gone:
        return []
    shown = ", ".join(gone[:SHOWN]) + (", ..." if len(gone) > SHOWN else "")
    return [f"{out}: lacks {shown}, whose scores were kept; name another folder to write them"]


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
