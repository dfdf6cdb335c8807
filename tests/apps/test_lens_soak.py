"""The lens's server under many programs at once, and under damaged files: what lasts, what goes."""

import base64
import contextlib
import importlib.util
import io
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.lenses import plan
from dino_core.models import load_model
from dino_core.serving import choose_port

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
LENS = ROOT / "apps" / "lens.py"
START_BOUND = 200.0  # seconds, as for all tests of the lens
CLIENTS, ROUNDS, PER_ROUND = 32, 7, 2
SETTLED = 4  # rounds after which heaps have their gaps, and sessions what they keep
PICTURES = 40
NAMES = ("attention", "embed")
# The lens with uploads kept for ten seconds, looked through every second.
FORGETFUL = f"""
import sys
sys.path.insert(0, {str(LENS.parent)!r})
import lens
whole = lens.LensPage.blocks
def blocks(page):
    made = whole(page)
    made.delete_cache = (1, 10)
    return made
lens.LensPage.blocks = blocks
lens.main()
"""


@dataclass
class Server:
    """A lens that runs, with a folder for temporary files of its own."""

    process: subprocess.Popen[bytes]
    address: str
    temporary: Path
    said: Path  # its stderr

    def memory(self) -> int:
        """What it holds in memory, in kB (VmRSS)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]

    def uploads(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def client(self) -> Any:
        from gradio_client import Client

        patient = {"timeout": 300}  # seconds; by itself it gives up after five
        return Client(self.address, verbose=False, httpx_kwargs=patient)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(root: Path, folder: Path, *program: str) -> Server:
    """A lens of the small model; `folder` is where it may put temporary files."""
    port = choose_port(18860).number
    words = ["--model", str(root / "small.safetensors"), "--root", str(root), "--device", "cpu"]
    environment = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    said = folder / "said.txt"
    temporary = folder / "temporary"
    temporary.mkdir()
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *(program or [str(LENS)]), *words, "--port", str(port)],
            env=environment | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    server = Server(process, f"http://127.0.0.1:{port}/", temporary, said)
    wait_for(server)
    return server


def wait_for(server: Server) -> None:
    import httpx

    until = time.monotonic() + START_BOUND
    while time.monotonic() < until:
        assert server.process.poll() is None, server.said.read_text()
        try:
            httpx.get(server.address, timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    server.end()
    raise AssertionError("the lens did not answer")


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    server = start(root, tmp_path)
    yield server
    server.end()
    assert "Traceback" not in server.said.read_text()
    assert server.uploads() == [], "what was sent is gone at the end"


def array(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def files_of(pictures: list[np.ndarray], folder: Path) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


# -- many at once ---------------------------------------------------------------------------------


@dataclass
class Visit:
    """One question, and what became of it."""

    name: str
    picture: int
    seconds: float
    answer: dict[str, Any]


def visit(client: Any, files: list[Path], name: str, picture: int) -> Visit:
    from gradio_client import handle_file

    begun = time.perf_counter()
    answer = client.predict(handle_file(files[picture]), api_name=f"/{name}")
    return Visit(name, picture, time.perf_counter() - begun, answer)


def questions(number: int, turn: int) -> list[tuple[str, int]]:
    """What a client asks in a round: other pictures than its neighbors, both endpoints."""
    first = number * 7 + turn * PER_ROUND
    return [(NAMES[(number + turn + i) % 2], (first + i) % PICTURES) for i in range(PER_ROUND)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read on Linux only")
def test_many_programs_at_once(server: Server, root: Path, tmp_path: Path) -> None:
    scenes = open_source("scenes:100-140")
    pictures = [scenes.image(i)[: 60 + 3 * i, : 180 - 2 * i] for i in range(PICTURES)]
    files = files_of(pictures, tmp_path)
    clients = [server.client() for _ in range(CLIENTS)]
    alone = [visit(clients[0], files, name, i) for i in range(8) for name in NAMES]
    memory, visits = [], []
    together = threading.Barrier(CLIENTS)

    def take_part(number: int, turn: int) -> list[Visit]:
        together.wait(300)
        return [visit(clients[number], files, *asked) for asked in questions(number, turn)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        for turn in range(ROUNDS):
            for done in pool.map(take_part, range(CLIENTS), [turn] * CLIENTS):
                visits += done
            memory.append(server.memory())
            assert len(server.uploads()) <= PICTURES, "a picture sent again is not kept again"
    for client in clients:
        client.close()

    assert len(visits) == CLIENTS * ROUNDS * PER_ROUND
    check_answers(visits + alone, pictures, root)
    wait = statistics.median(one.seconds for one in visits)
    compute = statistics.median(one.seconds for one in alone[2:])
    print(f"memory {[kb // 1024 for kb in memory]} MB, wait {wait:.2f} s, alone {compute:.2f} s")
    assert memory[-1] < 1.05 * memory[SETTLED - 1], memory
    assert wait <= 3 * CLIENTS * compute


def check_answers(visits: list[Visit], pictures: list[np.ndarray], root: Path) -> None:
    """Each of the right shape; to the same question the same answer, and to no other question."""
    model = load_model(str(root / "small.safetensors"), device="cpu")
    answers: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for one in visits:
        height, width = pictures[one.picture].shape[:2]
        if one.name == "attention":
            maps = array(one.answer["maps"])
            assert maps.shape == (3, *plan(model, height, width).grid)
            assert one.answer["source_size"] == [height, width]
            answers[one.name, one.picture].append(one.answer["maps"])
        else:
            assert np.linalg.norm(one.answer["vector"]) == pytest.approx(1, abs=1e-5)
            assert len(one.answer["vector"]) == model.backbone.embed_dim
            answers[one.name, one.picture].append(tuple(one.answer["vector"]))
    different = [set(told) for told in answers.values()]
    assert all(len(told) == 1 for told in different)
    assert len(set.union(*different)) == len(answers) == len(NAMES) * PICTURES


# -- damaged files --------------------------------------------------------------------------------


def mutated() -> Any:
    """The module whose `mutants` make damaged files."""
    path = ROOT / "tests" / "data" / "test_mutated.py"
    spec = importlib.util.spec_from_file_location("mutated_for_the_lens", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_damaged_files(server: Server, root: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    folder = tmp_path / "damaged"
    folder.mkdir()
    mutants = list(mutated().mutants(300))

    def send(first: int) -> list[str]:
        """What is wrong with how the server took one in eight of the files."""
        client, wrong = server.client(), []
        for mutant in mutants[first::8]:
            path = folder / mutant.name
            path.write_bytes(mutant.data)
            try:
                answer = client.predict(handle_file(path), size=32, api_name="/attention")
            except Exception as error:
                wrong.append(wrong_refusal(mutant, str(error)))
            else:
                wrong.append(wrong_answer(mutant, answer))
        client.close()
        return [complaint for complaint in wrong if complaint]

    with ThreadPoolExecutor(8) as pool:  # a client each: one of several threads loses answers
        assert list(pool.map(send, range(8))) == [[]] * 8
    distinct = {one.data for one in mutants}
    assert len(distinct) / 2 < len(server.uploads()) <= len(mutants)
    client = server.client()
    answer = client.predict(handle_file(root / "photo.jpg"), api_name="/attention")
    client.close()
    assert array(answer["maps"]).shape == (3, 28, 37)


def wrong_refusal(mutant: Any, sentence: str) -> str:
    if not mutant.reasons:
        return f"{mutant.name}: refused ({sentence}), but it is good"
    good = re.fullmatch(rf"{re.escape(mutant.name)}: [^\n]+; choose another picture\.", sentence)
    if not good or not re.search(mutant.reasons, sentence):
        return f"{mutant.name}: refused for a wrong reason ({sentence})"
    return ""


def wrong_answer(mutant: Any, answer: dict[str, Any]) -> str:
    if mutant.reasons not in ("", "."):
        return f"{mutant.name}: was looked at, but it is {mutant.reasons}"
    if not np.isfinite(array(answer["maps"])).all():
        return f"{mutant.name}: looked at with maps that are no numbers"
    if mutant.pixels is not None and answer["source_size"] != list(mutant.pixels.shape[:2]):
        return f"{mutant.name}: is {mutant.pixels.shape[:2]}, seen as {answer['source_size']}"
    return ""


# -- uploads --------------------------------------------------------------------------------------


def test_uploads_go_when_their_time_is_over(root: Path, tmp_path: Path) -> None:
    """And what is sent after that, be it the same picture, is looked at as ever."""
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    server = start(root, tmp_path, "-c", FORGETFUL)
    try:
        scenes = open_source("scenes:200-206")
        files = files_of([scenes.image(i) for i in range(6)], tmp_path)
        client = server.client()

        def look(path: Path) -> Any:
            return client.predict(handle_file(path), size=32, api_name="/attention")

        with contextlib.suppress(AppError):  # it waits for PyTorch, and its file may go meanwhile
            look(files[0])
        for _ in range(2):
            for path in files:
                look(path)
            until = time.monotonic() + 60
            while server.uploads() and time.monotonic() < until:
                time.sleep(0.2)
            assert server.uploads() == []
        client.close()
    finally:
        server.end()
    assert not list(server.temporary.glob("dino-lens-*")), "nor are empty folders left"
