"""What all tests share: localhost only, a headless browser, marks that explain their skips.

A test that needs a browser takes `page`: a fresh page of Debian's Chromium (or what else is on the
PATH) that fails the test when the page asks anything of another machine. Where there is no browser
such tests skip, saying so, unless DINO_REQUIRE_BROWSER=1.
"""

import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# No test fails by the clock; what CI finds can be found again.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_configure(config: pytest.Config) -> None:
    stay_on_this_machine()
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each its share, before torch loads
        share = max(1, (os.cpu_count() or 1) // int(workers))
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


class Together(LoadFileScheduling):
    """Each file whole in one process; and all that looks at one app, which is started once."""

    def _split_scope(self, nodeid: str) -> str:
        return re.sub(
            r"/test_(explorer|lens)_\w+\.py", r"/test_\1.py", super()._split_scope(nodeid)
        )


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder with `apps/`, `scripts/` and the rest."""
    return ROOT


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium for the whole session (playwright's `Browser`)."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser on the PATH ({', '.join(BROWSERS)})"
        if os.environ.get("DINO_REQUIRE_BROWSER"):
            pytest.fail(f"{reason}, and DINO_REQUIRE_BROWSER is set")
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    # Without a sandbox, so that it starts as root and in containers; it meets our own pages only.
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page, 1280 x 800, that may talk to localhost alone (playwright's `Page`)."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    abroad: list[str] = []
    context.on("request", lambda request: abroad.extend(_abroad(request.url)))
    context.set_default_timeout(60_000)  # ms; a guard, not a mark
    yield context.new_page()
    context.close()
    assert not abroad, f"the page asked for {abroad}"


def _abroad(url: str) -> list[str]:
    parts = urlsplit(url)
    local = parts.scheme in ("data", "blob", "about") or is_local(parts.hostname or "")
    return [] if local else [url]


def is_local(host: str | bytes | None) -> bool:
    """Whether a host name or address means this very machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def stay_on_this_machine() -> None:
    """Let this process neither connect to another machine nor ask for its address."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            raise OSError(f"a test tried to connect to {address[0]}")
        return connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            raise socket.gaierror(socket.EAI_NONAME, f"a test asked for the address of {host}")
        return look_up(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign]
    socket.getaddrinfo = guarded_look_up
