"""See what a model learned, in your browser: its attention on your photos, and a map of images.

    python scripts/demo.py
    python scripts/demo.py --data photos/
    python scripts/demo.py --data photos/ --model runs/mine
    python scripts/demo.py --data photos/ --train 30m

Offline and without a GPU: the first start makes a gallery of generated images (or of your folder),
then the lens and the explorer start and their addresses are printed. With --train a model is first
trained on your folder, for that long. Ctrl-C stops whatever is going on; the same command goes on
where it was.
"""

import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_core.errors import quiet_while_importing

if __name__ == "__main__":
    quiet_while_importing()

from dino_core.errors import UserError, command
from dino_core.gallery.listing import data_name, gallery_name
from dino_core.launcher import AlreadyRunning, Launcher, Server, ending_interrupts
from dino_core.runs import INTERRUPTED
from dino_core.serving import choose_port

if TYPE_CHECKING:
    from dino_core.gallery import Gallery

APPS = Path(__file__).resolve().parents[1] / "apps"
HOST = "127.0.0.1"
SECONDS_TO_START = 300.0  # a guard: both answer within seconds on any machine


@dataclass
class Demo:
    """See what a model learned, in your browser."""

    model: str = "starter"
    """starter, runs/NAME, a weights file, or timm:NAME."""
    data: str = "scenes"
    """A folder of images, a .csv or .parquet with a path column, a .tar, or `scenes`."""
    train: str | None = None
    """Train a model on --data first, for this long, e.g. 30m; it lies in runs/ afterwards."""
    root: Path = Path(".")
    """Where galleries/ is made and runs/ is looked for."""
    lens_port: int = 7860
    """Port of the lens; the next free one is taken when it is in use."""
    explorer_port: int = 8501
    """Port of the explorer; likewise."""
    open: bool = True
    """Open the pages in a browser, where there is a display."""


def train_model(args: Demo, root: Path) -> str:
    """Train on the data, or finish that, or find it finished; which model it is."""
    if args.model != "starter":
        raise UserError("--train makes a model of its own: leave --model out")
    assert args.train is not None
    from dino_core.data import open_source
    from dino_core.runs import Run

    run = Run(root / "runs" / data_name(args.data))
    model = f"runs/{run.name}"
    if run.exists() and run.status().get("state") == "finished":
        print(f"{model} is trained already; remove it to train anew.")
        return model
    source = open_source(args.data)
    print("Loading torch ...", flush=True)
    from dino_core.training import Recipe, planned, seconds_of, train

    seconds = seconds_of(args.train)
    recipe = Recipe()
    if not run.exists():
        recipe = planned("auto", source, run=run, max_seconds=seconds, tell=print)
    train(recipe, source, run, resume=True, max_seconds=seconds)
    if run.status().get("reason") == INTERRUPTED:
        raise KeyboardInterrupt
    for line in run.history():
        print(f"  {line}")
    return model


def make_gallery(args: Demo, root: Path) -> "Gallery":
    """Make the gallery, or finish it, or find it made."""
    from dino_core.data import open_source, require_readable

    source = open_source(args.data)
    require_readable(source)
    for note in source.notes:
        print(f"note: {note}")
    print("Loading torch and the model ...", flush=True)
    from dino_core.gallery import build
    from dino_core.gallery.progress import bars
    from dino_core.models import load_model

    model = load_model(args.model, root=root)
    path = root / "galleries" / gallery_name(args.model, args.data)
    with bars() as progress:
        # The gallery is the demo's own: where its weights or images have changed, it is made again.
        gallery = build(model, source, path, progress=progress, redo=True)
    unreadable = gallery.info.quarantined
    if unreadable:
        print(f"note: {unreadable:,} files cannot be read; see {path}/quarantine.jsonl")
    return gallery


def servers(args: Demo, root: Path, gallery: "Gallery") -> list[Server]:
    """Both apps, on ports that are free now."""
    ports = {}
    for name, preferred in (("lens", args.lens_port), ("explorer", args.explorer_port)):
        port = choose_port(preferred, HOST)
        if port.sentence:
            print(f"{name}: {port.sentence}")
        ports[name] = port.number
    shown = ("--model", args.model, "--gallery", str(gallery.path), "--root", str(root))
    lens = (str(APPS / "lens.py"), "--host", HOST, "--port", str(ports["lens"]), *shown)
    streamlit = ("-m", "streamlit", "run", str(APPS / "explorer.py"), "--server.address", HOST)
    explorer = (*streamlit, "--server.port", str(ports["explorer"]), "--", *shown)
    return [
        Server(name, (sys.executable, *words), f"http://{HOST}:{ports[name]}/")
        for name, words in (("lens", lens), ("explorer", explorer))
    ]


def serve(args: Demo, launcher: Launcher, apps: list[Server], gallery: "Gallery") -> None:
    """Start the apps, say where they are, and stay until Ctrl-C or until one ends by itself."""
    print("Starting the lens and the explorer ...", flush=True)
    for app in apps:
        launcher.start(app)
    launcher.wait_until_answering(SECONDS_TO_START)
    lens, explorer = (app.address for app in apps)
    images = "generated images" if gallery.info.generated else "images"
    print(f"\n  The lens      {lens}   attention heads and neighbors of one photo")
    print(f"  The explorer  {explorer}   a map of {len(gallery):,} {images}\n")
    if gallery.info.generated:
        print("  Your own images:  python scripts/demo.py --data FOLDER")
    print("  Ctrl-C stops both.\n", flush=True)
    if args.open and has_display():
        for app in apps:
            webbrowser.open(app.address)
    launcher.watch()


def has_display() -> bool:
    """Whether a browser could open a window here."""
    return sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def tell_where(other: AlreadyRunning) -> None:
    """A second start: say where the first one is."""
    if not other.addresses:
        print(f"The demo is being prepared already, by process {other.pid}: see its terminal.")
        return
    print(f"The demo is running already, as process {other.pid}:")
    for name, address in other.addresses.items():
        print(f"  The {name:9} {address}")
    print("To start it anew, with another model or other data, end that one with Ctrl-C first.")


@command
def main() -> None:
    args = tyro.cli(Demo, description=__doc__)
    root = args.root.resolve()
    if Path(args.model).is_file():  # beside the user; other relative spellings start at the root
        args.model = str(Path(args.model).resolve())
    try:
        with ending_interrupts(), Launcher(root / ".dino-demo") as launcher:
            if args.train is not None:
                args.model = train_model(args, root)
            gallery = make_gallery(args, root)
            serve(args, launcher, servers(args, root, gallery), gallery)
    except AlreadyRunning as other:
        tell_where(other)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one was.")


if __name__ == "__main__":
    main()
