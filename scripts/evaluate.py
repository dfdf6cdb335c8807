"""Judge a model by the published protocols.

    python scripts/evaluate.py knn --model runs/mine --train data/train --test data/val
    python scripts/evaluate.py linear --model runs/mine --train data/train --test data/val
    python scripts/evaluate.py attention --model starter --data photos/ --masks masks/
    python scripts/evaluate.py video --model starter --data DAVIS/ --out found/
    python scripts/evaluate.py report figures/*.json --out report.html
    torchrun --nproc-per-node=8 scripts/evaluate.py knn --train imagenet/train --test imagenet/val

Every figure stands beside the same for the untrained backbone; --json FILE saves them all. What was
computed of images stays in --features and is found again: a stopped command goes on where it was,
another protocol on the same features takes seconds. Delete the folder whenever you like.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core import distributed
from dino_core.data import open_source
from dino_core.errors import at_least, command
from dino_core.evaluation import (
    attention,
    attentive,
    copies,
    knn,
    linear,
    low_shot,
    objects,
    report,
    retrieval,
    saliency,
    unlabeled,
    video,
)
from dino_core.evaluation.corruptions import STRENGTHS
from dino_core.evaluation.passes import Passing
from dino_core.files import check_writable, write_json
from dino_core.gallery.progress import bars, silent
from dino_core.models import Model, device_of, load_model
from dino_core.training.parallel import agreed, own_device, process_group

SOURCES = ("train", "test", "data")  # opened before a protocol gets them


@dataclass
class Common:
    """What all protocols take."""

    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    json: Path | None = None
    """Where to save the figures."""
    random_init: bool = True
    """Judge the untrained backbone as well."""
    features: Path | None = Path("features")
    """Folder in which features and figures stay and are found again; None keeps nothing."""
    batch_size: int = Passing.batch_size
    """Images a forward pass."""
    workers: int | None = Passing.workers
    """Decoding processes; by default as many as help on this machine."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def settings(self) -> dict[str, Any]:
        """What a protocol itself is told, by the names of its `evaluate`."""
        for_all = {one.name for one in fields(Common)} - {"random_init"}
        names = [one.name for one in fields(self) if one.name not in {*for_all, *SOURCES}]
        return {name: getattr(self, name) for name in names}


@dataclass
class Tested(Common):
    """What protocols with classes are judged on."""

    test: str = tyro.MISSING
    """Labeled images to judge on: class folders, a table with a column `label`, .tar, `scenes`."""


@dataclass
class Labeled(Tested):
    """What protocols take that learn classes, or look them up."""

    train: str = tyro.MISSING
    """Labeled images to learn from, of the same kinds."""


@dataclass
class Knn(Labeled):
    """k-NN accuracy: how well classes can be read off an image's neighbors."""

    ks: tuple[int, ...] = knn.KS
    """Numbers of neighbors to try; the best is reported."""
    temperature: float = knn.TEMPERATURE
    """Votes weigh exp(similarity / temperature)."""
    pixels: bool = False
    """Judge raw pixels (32 x 32) as well."""

    def run(self, model: Model, passing: Passing) -> knn.KnnResult:
        return knn.evaluate(
            model, open_source(self.train), open_source(self.test), **self.settings(),
            passing=passing,
        )  # fmt: skip


@dataclass
class Linear(Tested):
    """Linear accuracy: a sweep of linear layers, trained at once on frozen features."""

    train: str | None = None
    """Labeled images to learn from, of the same kinds; with --weights it may be left out."""
    n_blocks: tuple[int, ...] | None = None
    """Last blocks whose class tokens are seen; several are tried. As published if not given."""
    avgpool: linear.Pooling | None = None
    """Whether the mean patch token is seen too: no, yes, or both (both are tried)."""
    rates: tuple[float, ...] = linear.RATES
    """Learning rates, for a batch of 256."""
    epochs: int = linear.EPOCHS
    """Times that every training image is seen."""
    batch: int | None = None
    """Images a step; by default the published 1,024, or fewer where images are few."""
    views: int = 0
    """Random crops of each training image beside the center one; as many passes more."""
    standardize: bool = True
    """Scale features to mean 0 and deviation 1 before layers learn from them."""
    as_published: bool = False
    """One rate, raw features, new crops in each epoch; the best epoch on test is reported."""
    weights: Path | None = None
    """Evaluate this linear layer (published .pth or .safetensors) instead of training one."""
    save: Path | None = None
    """Where to save the layer that was judged."""

    def run(self, model: Model, passing: Passing) -> linear.LinearResult:
        train = None if self.train is None else open_source(self.train)
        return linear.evaluate(
            model, train, open_source(self.test), **self.settings(), passing=passing
        )


@dataclass
class LowShot(Labeled):
    """Low-shot accuracy: a linear layer and a k-NN vote that know few labels, drawn repeatedly."""

    shares: tuple[float, ...] = low_shot.SHARES
    """Shares of the labels of each class."""
    per_class: tuple[int, ...] = low_shot.PER_CLASS
    """Labels of each class."""
    repeats: int = low_shot.REPEATS
    """Draws of labels; figures are the mean and the deviation over them."""
    k: int = low_shot.K
    """Neighbors that vote."""
    strength: float = low_shot.STRENGTH
    """Inverse of the penalty on the linear layer's weights; more fits the few labels closer."""

    def run(self, model: Model, passing: Passing) -> low_shot.LowShotResult:
        return low_shot.evaluate(
            model, open_source(self.train), open_source(self.test), **self.settings(),
            passing=passing,
        )  # fmt: skip


@dataclass
class Attentive(Labeled):
    """Attentive probe: one learned query over frozen patch tokens, then a linear layer."""

    rates: tuple[float, ...] = attentive.RATES
    """Learning rates to try."""
    epochs: int = attentive.EPOCHS
    """Times that every training image is seen."""
    batch: int | None = None
    """Images a step; by default chosen by how many there are."""
    most_gigabytes: float = attentive.MOST_GIGABYTES
    """Room that the patch tokens of all images may take."""

    def run(self, model: Model, passing: Passing) -> attentive.AttentiveResult:
        return attentive.evaluate(
            model, open_source(self.train), open_source(self.test), **self.settings(),
            passing=passing,
        )  # fmt: skip


@dataclass
class Masked(Common):
    """What protocols with masks take."""

    data: str = tyro.MISSING
    """Images: a folder, a table with a path column, a .tar, or `scenes`."""
    masks: Path | None = None
    """Folder of mask files, named as the images; without, the data's own (as `scenes` have)."""
    size: int | None = None
    """Short side in pixels; None: 28 patches, or what the model was trained at."""


@dataclass
class Attention(Masked):
    """Attention as segmentation: mean IoU of the best head per object, 60 % of the mass kept."""

    size: int | None = attention.SIZE
    """Short side in pixels, as the published visualization feeds; long images get less."""
    keep: float = attention.KEEP
    """Share of a head's attention that makes its mask."""
    layer: int = -1
    """Which block's heads; -1 is the last."""

    def run(self, model: Model, passing: Passing) -> attention.AttentionResult:
        return attention.evaluate(model, open_source(self.data), **self.settings(), passing=passing)


@dataclass
class Cut(Masked):
    """What protocols that cut objects out without labels take."""

    tau: float = objects.TAU
    """Patches whose cosine is above this are joined."""
    as_published: bool = False
    """Feed images as the published scripts do, about as large as they are; never center keys."""


@dataclass
class Objects(Cut):
    """TokenCut masks: IoU with the objects, and CorLoc of the box."""

    def run(self, model: Model, passing: Passing) -> objects.ObjectsResult:
        return objects.evaluate(model, open_source(self.data), **self.settings(), passing=passing)


@dataclass
class Saliency(Cut):
    """Saliency: max F-beta, IoU and accuracy of a soft map against the foreground."""

    map: saliency.Map = "cut"
    """cut (a mask, as published), eigenvector (the soft solution), attention (mean of heads)."""

    def run(self, model: Model, passing: Passing) -> saliency.SaliencyResult:
        return saliency.evaluate(model, open_source(self.data), **self.settings(), passing=passing)


@dataclass
class Video(Common):
    """Video segmentation: objects of the first frame followed by the likeness of patches."""

    data: Path = tyro.MISSING
    """A folder laid out as DAVIS: JPEGImages/ and Annotations/."""
    size: int = video.SIZE
    """Short side in pixels."""
    frames: int = video.Propagation.frames
    """Last frames that labels come from, beside the first."""
    radius: int = video.Propagation.radius
    """How many patches away, each way, a label may come from; 0: any number."""
    topk: int = video.Propagation.topk
    """Patches that a patch takes its label from."""
    temperature: float = video.Propagation.temperature
    """Affinity is exp(cosine / temperature)."""
    videos: tuple[str, ...] | None = None
    """These videos alone."""
    as_published: bool = False
    """Divide red by 0.228 instead of 0.229, and take void for background, as published."""
    out: Path | None = None
    """Folder for the masks found, as palette PNGs."""

    def run(self, model: Model, passing: Passing) -> video.VideoResult:
        return video.evaluate(model, self.data, **self.settings(), passing=passing)


@dataclass
class Retrieval(Common):
    """Image retrieval: mAP easy, medium and hard on revisited Oxford, Paris, or your own."""

    data: str = tyro.MISSING
    """Folder of the images, queries among them."""
    ground_truth: Path | None = None
    """gnd_NAME.pkl (read as data, never unpickled) or .json; by default the one beside them."""
    size: int | None = None
    """Longer side in pixels; as published for Oxford (224) and Paris (512) if not given."""
    multiscale: bool | None = None
    """Mean of three scales; as published if not given."""
    as_published: bool = False
    """Ask with whole images instead of their boxes."""

    def run(self, model: Model, passing: Passing) -> retrieval.RetrievalResult:
        return retrieval.evaluate(model, open_source(self.data), **self.settings(), passing=passing)


@dataclass
class Copies(Common):
    """Copy detection: mAP of finding the original of each copy, as on Copydays."""

    data: Path = tyro.MISSING
    """Folder with `originals` and `copies` (or `original` and `strong`, as Copydays has them)."""
    pairs: Path | None = None
    """CSV with the columns copy and original; without, names tell what belongs together."""
    distractors: str | None = None
    """More images to search among, of which no copy was made."""
    whitening: str | None = None
    """Images that whitening is learned from; without, features are not whitened."""
    whitening_dim: int | None = None
    """Axes that whitening keeps; by default as many as these images span."""
    size: int = copies.SIZE
    """Pixels a side."""
    as_published: bool = False
    """Whiten by the covariance of features that are not centered."""

    def run(self, model: Model, passing: Passing) -> copies.CopiesResult:
        originals, found = copies.open_pairs(self.data)
        others = {name: getattr(self, name) for name in ("distractors", "whitening")}
        opened = {name: spec and open_source(spec) for name, spec in others.items()}
        return copies.evaluate(model, originals, found, **self.settings() | opened, passing=passing)


@dataclass
class Measures(Common):
    """Without labels: RankMe, alignment, uniformity, shared neighbors, robustness."""

    data: str = tyro.MISSING
    """Images: a folder, a table with a path column, a .tar, or `scenes`."""
    other: tuple[str, ...] = ()
    """More models, to count the neighbors that they share."""
    corruptions: tuple[str, ...] = tuple(STRENGTHS)
    """What is done to the images; each, at each severity, is one more pass over them."""
    severities: tuple[int, ...] = unlabeled.SEVERITIES
    """How strongly, from 1 to 5."""
    k: int = unlabeled.K
    """Neighbors that are compared."""
    views: int = unlabeled.VIEWS
    """Augmented views of each image, for alignment."""

    def run(self, model: Model, passing: Passing) -> unlabeled.UnlabeledResult:
        other = [load_model(spec, device=str(model.device)) for spec in self.other]
        return unlabeled.evaluate(
            model, open_source(self.data), **self.settings() | {"other": other}, passing=passing
        )


PROTOCOLS: dict[str, Callable[..., Any]] = {
    "knn": Knn,
    "linear": Linear,
    "low-shot": LowShot,
    "attentive": Attentive,
    "attention": Attention,
    "objects": Objects,
    "saliency": Saliency,
    "video": Video,
    "retrieval": Retrieval,
    "copies": Copies,
    "measures": Measures,
}


@dataclass
class Report:
    """Saved figures of any models and protocols as one table and one page with pictures."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files that protocols saved with --json."""
    out: Path = Path("report.html")
    """Where the page goes; it needs no other file."""
    device: str = "auto"
    """Where models run for pictures of masks."""


@command
def main() -> None:
    args = tyro.extras.subcommand_cli_from_dict(
        PROTOCOLS | {"report": Report}, description=__doc__, console_outputs=distributed.is_main()
    )
    if isinstance(args, Report):
        _report(args)
        return
    at_least(1, batch_size=args.batch_size)
    at_least(0, workers=args.workers)
    if args.json is not None:
        check_writable(args.json)  # before hours of computing
    model = load_model(args.model, device=str(own_device(device_of(args.device))))
    cpu = device_of("cpu")  # what the processes tell each other is small
    with process_group(cpu, "evaluation"), bars() as progress:
        several = distributed.world_size() > 1
        passing = Passing(
            keep=args.features,
            batch_size=args.batch_size,
            workers=args.workers,
            progress=progress if distributed.is_main() else silent,
            agree=partial(agreed, device=cpu) if several else None,
        )
        try:
            result = args.run(model, passing)
        except KeyboardInterrupt:
            if args.features is not None and distributed.is_main():
                kept = f"what was computed is kept in {args.features}; the same command goes on"
                print(f"\n{kept}", end="", file=sys.stderr)
            raise
    if not distributed.is_main():
        return
    if args.json is not None:  # before the table, which may not find a reader
        name = next(name for name, kind in PROTOCOLS.items() if type(args) is kind)
        write_json(args.json, {"protocol": name} | result.as_dict())
    print(result.table())
    if args.json is not None:
        print(f"saved in {args.json}")


def _report(args: Report) -> None:
    check_writable(args.out)
    print(report.table(args.files))
    with bars() as progress:
        print(report.build(args.files, args.out, device=args.device, progress=progress))


if __name__ == "__main__":
    main()
