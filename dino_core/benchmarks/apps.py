"""The apps: from the start of the process to the first page, and how fast pages come after that.

    measure()  ->  lens and explorer, each on generated images, answering on localhost

Each start is a fresh process with warm disk caches. The apps' files are found by `apps`, the folder
of the two, which a wheel does not have.
"""

import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from dino_core.benchmarks.hardware import hardware
from dino_core.benchmarks.measuring import Measured
from dino_core.errors import UserError, at_least
from dino_core.launcher import Launcher, Server
from dino_core.serving import choose_port

HOST = "127.0.0.1"
APPS = Path(__file__).resolve().parents[2] / "apps"
PATIENCE = 300.0  # seconds until an app has answered, or never will
REQUESTS = 20  # pages fetched from an app that runs
PORTS = {"lens": 7860, "explorer": 8501}  # tried first
NAMES = tuple(PORTS)


def measure(
    names: tuple[str, ...] = NAMES, *, rounds: int = 3, apps: Path = APPS
) -> list[Measured]:
    """Start each of the apps `rounds` times; 5 to 20 s each.

    Raises `UserError` for an app that is not there, or ends by itself.
    """
    at_least(1, rounds=rounds)
    for name in names:
        if name not in NAMES or not (apps / f"{name}.py").is_file():
            raise UserError(f"{apps / name}.py: no such app; there are {' and '.join(NAMES)}")
    return [_measured(name, apps, rounds) for name in names]


def _measured(name: str, apps: Path, rounds: int) -> Measured:
    starts, pages = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with _running(name, apps) as fetch:
            starts.append(1000 * (time.perf_counter() - began))
            pages.append(median(_milliseconds(fetch) for _ in range(REQUESTS)))
    return Measured(
        name=f"{name}, from the start of the process to the first page",
        hardware=hardware(torch.device("cpu")),
        milliseconds=median(starts),
        notes=(
            f"slowest of {rounds} starts: {max(starts):,.0f} ms; "
            f"the page again, over HTTP: {median(pages):,.1f} ms",
        ),
    )


@contextmanager
def _running(name: str, apps: Path) -> Iterator[Callable[[], None]]:
    """An app that answers, until the end of the block; yields what fetches its page."""
    port = choose_port(PORTS[name], HOST).number
    address = f"http://{HOST}:{port}/"
    with tempfile.TemporaryDirectory() as folder, Launcher(Path(folder, "up")) as launcher:
        launcher.start(Server(name, _command(name, apps, port, folder), address))
        launcher.wait_until_answering(PATIENCE)
        yield lambda: _fetch(address)


def _command(name: str, apps: Path, port: int, root: str) -> tuple[str, ...]:
    app = str(apps / f"{name}.py")
    if name == "lens":
        return (sys.executable, app, "--host", HOST, "--port", str(port), "--root", root)
    streamlit = (sys.executable, "-m", "streamlit", "run", app, "--server.headless", "true")
    where = ("--server.address", HOST, "--server.port", str(port))
    return (*streamlit, *where, "--", "--root", root)


def _fetch(address: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=PATIENCE) as page:
            page.read()
    except urllib.error.URLError as error:
        raise UserError(f"{address}: stopped answering ({error})") from error


def _milliseconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)
