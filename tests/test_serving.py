"""Who may change things, and which port is taken."""

import socket
from pathlib import Path

import pytest

from dino_core.errors import UserError
from dino_core.serving import addresses, choose_port, is_inside, is_loopback, may_change


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1"])
def test_a_loopback_host_may_change_everything(host: str) -> None:
    assert is_loopback(host)
    assert may_change(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_any_other_host_needs_the_token(host: str) -> None:
    assert not may_change(host)
    assert not may_change(host, token="secret")
    assert not may_change(host, token="secret", given="Secret")
    assert not may_change(host, given="anything")
    assert not may_change(host, token="", given="")
    assert may_change(host, token="sécret", given="sécret")


def test_a_port_in_use_leads_to_the_next_and_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        port = choose_port(busy)
    assert port.number > busy
    assert str(busy) in port.sentence and str(port.number) in port.sentence


def test_a_free_port_is_taken_without_a_word() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    assert choose_port(free).number == free
    assert choose_port(free).sentence == ""


def test_a_host_that_is_not_ours_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"203\.0\.113\.9"):
        choose_port(7860, "203.0.113.9")


def test_addresses_can_be_typed_into_a_browser() -> None:
    assert addresses("127.0.0.1", 7860) == ["http://127.0.0.1:7860/"]
    assert addresses("::1", 7860) == ["http://[::1]:7860/"]
    assert addresses("0.0.0.0", 7860)[0] == "http://localhost:7860/"


def test_only_files_below_the_folder_are_inside(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    assert is_inside(folder, folder / "a.jpg")
    assert not is_inside(folder, folder / ".." / "secret.jpg")
    assert not is_inside(folder, folder / "link.jpg")
    assert not is_inside(folder, folder)
    assert not is_inside(folder, folder / "none.jpg")
    assert not is_inside(folder, "a\0b")
