"""Who may do what to a page, and where it listens. No web framework, no torch.

An app bound to this machine alone (a loopback address) trusts whoever reaches it. Bound to anything
else, what starts processes, downloads or deletes is off, unless the app was started with a token
and the visitor brings the same one.
"""

import errno
import hmac
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from dino_core.errors import UserError

PORTS_TRIED = 50
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True)
class Port:
    """A port that was free a moment ago, and a sentence when it is not the one asked for."""

    number: int
    sentence: str = ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_change(host: str, token: str | None = None, given: str | None = None) -> bool:
    """Whether a visitor may start processes, download or delete.

    `host` is what the app is bound to, `token` what it was started with, `given` what the visitor
    brought. Compared in constant time.
    """
    if is_loopback(host):
        return True
    return bool(token and given) and hmac.compare_digest(str(token).encode(), str(given).encode())


def choose_port(preferred: int, host: str = "127.0.0.1") -> Port:
    """`preferred`, or the next port above it that is free on `host`.

    Raises `UserError` when none of the next 50 is, or `host` is no address of this machine.
    """
    last = min(preferred + PORTS_TRIED, 65536)
    for number in range(preferred, last):
        if _is_free(host, number):
            busy = f"port {preferred} is in use; using {number} instead"
            return Port(number, "" if number == preferred else busy)
    raise UserError(
        f"ports {preferred} to {last - 1} are all in use on {host}; name another with --port"
    )


def addresses(host: str, port: int) -> list[str]:
    """The addresses under which a browser finds the app, this machine's own first."""
    if host in ("0.0.0.0", "::", ""):
        return [f"http://localhost:{port}/", f"http://{_own_name()}:{port}/"]
    shown = f"[{host}]" if ":" in host else host
    return [f"http://{shown}:{port}/"]


def is_inside(folder: str | Path, path: str | Path) -> bool:
    """Whether `path`, links and dots resolved, is a file below `folder`."""
    try:
        found = Path(path).resolve(strict=True)
    except (OSError, ValueError):
        return False
    return found.is_file() and found.is_relative_to(Path(folder).resolve())


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not hindered by TIME_WAIT
        try:
            probe.bind((host, port))
        except PermissionError:
            return False
        except socket.gaierror:
            raise UserError(f"{host}: no address of this machine; use 127.0.0.1") from None
        except OSError as error:
            if error.errno in _NOT_HERE:
                raise UserError(f"{host}: no address of this machine; use 127.0.0.1") from None
            return False
    return True


def _own_name() -> str:
    return socket.gethostname()
