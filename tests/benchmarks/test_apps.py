"""The benchmark of the apps: it starts them, and leaves none behind."""

from pathlib import Path

import pytest

from dino_core.benchmarks.apps import measure
from dino_core.errors import UserError
from dino_core.launcher import answers

FAKE = """
import http.server, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_an_app_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lens.py").write_text(FAKE)
    from dino_core.benchmarks import apps

    ports: list[int] = []
    choose = apps.choose_port
    monkeypatch.setattr(
        apps, "choose_port", lambda *args: (port := choose(*args), ports.append(port.number))[0]
    )
    (one,) = measure(("lens",), rounds=2, apps=tmp_path)
    assert one.milliseconds and "over HTTP" in one.notes[0]
    assert len(ports) == 2 and not any(answers(f"http://127.0.0.1:{port}/") for port in ports)


def test_no_such_app(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lens\.py: no such app"):
        measure(("lens",), apps=tmp_path)
