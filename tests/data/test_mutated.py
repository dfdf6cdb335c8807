"""Image files as the world damages them: each is decoded rightly, or left out with its reason.

Every file of a kind is made by known rules from a known picture, so what has to come out is known
too: the picture, or one of a few reasons. Where damage may or may not be noticed (a flipped bit),
what comes out is compared with a second decoder: torchvision's libjpeg for JPEG, forty lines here
for PNG (torchvision's libpng crashes on some of these files), Pillow's own incremental parser
elsewhere.
"""

import io
import re
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageFile

from dino_core.data import BadImage, Quarantine, decode_image, open_source, safe_image
from dino_core.rng import generator

ENDINGS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
LIMIT_S = 5.0  # for the slowest file, on a busy machine
MEMORY = 1_500_000_000  # bytes a process may take beyond what it has at its start


@dataclass
class Mutant:
    """A file, and what may come of it."""

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    """What has to come out, uint8 [H, W, 3]; None where a reason or a second decoder decides."""
    tolerance: int = 0
    reasons: str = ""
    """A pattern that the reason has to match, "" where a file has to be decoded."""


def picture(seed: int) -> np.ndarray:
    """Smooth colors with a hard edge, uint8 [H, W, 3]."""
    draw = generator(seed, "tests", "mutants")
    height, width = (int(side) for side in draw.integers(24, 80, 2))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b) for a, b in draw.uniform(0.02, 0.12, (3, 2))]
    pixels = np.stack(waves, axis=-1) * 90 + 128
    pixels[y > x] = 255 - pixels[y > x]
    return pixels.clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


LOSSLESS = {"PNG": {}, "TIFF": {"compression": "tiff_deflate"}, "WEBP": {"lossless": True}}
KINDS = ["PNG", "JPEG", "TIFF", "WEBP"]


def mutants(count: int) -> Iterator[Mutant]:
    """`count` files, each kind of damage equally often."""
    makers = [
        truncated, flipped, overwritten, bomb, inks, deep, animated, misnamed, empty, text,
        transparent, doubled,
    ]  # fmt: skip
    for k in range(count):
        maker = makers[k % len(makers)]
        yield maker(k, picture(k), KINDS[(k // len(makers)) % len(KINDS)])


def truncated(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    data = encoded(pixels, kind, **LOSSLESS.get(kind, {"quality": 90}))
    share = generator(k, "tests", "cut").uniform(0.02, 0.9)
    pattern = "truncated|broken image file|not an image|unrecognized"
    return Mutant(f"cut-{k}.{ENDINGS[kind]}", data[: int(len(data) * share)], reasons=pattern)


def flipped(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    data = bytearray(encoded(pixels, kind, **LOSSLESS.get(kind, {"quality": 90})))
    draw = generator(k, "tests", "flip")
    for _ in range(int(draw.integers(1, 6))):
        data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    return Mutant(f"flip-{k}.{ENDINGS[kind]}", bytes(data), reasons=".")


def overwritten(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    data = encoded(pixels, kind, **LOSSLESS.get(kind, {"quality": 90}))
    draw = generator(k, "tests", "noise")
    start = int(draw.integers(len(data) // 2))
    noise = draw.bytes(min(64, len(data) - start))
    changed = data[:start] + noise + data[start + len(noise) :]
    return Mutant(f"noise-{k}.{ENDINGS[kind]}", changed, reasons=".")


def bomb(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    """A small file that says it is a hundred billion pixels (or unpacks to far too many)."""
    if kind in ("PNG", "WEBP"):

        def chunk(name: bytes, body: bytes) -> bytes:
            whole = name + body
            return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

        header = struct.pack(">IIBBBBB", 400_000, 300_000, 8, 2, 0, 0, 0)
        body = zlib.compress(bytes(3_000_000))
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        return Mutant(f"bomb-{k}.png", b"\x89PNG\r\n\x1a\n" + parts, reasons="too large")
    if kind == "JPEG":
        data = bytearray(encoded(pixels, kind))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
        return Mutant(f"bomb-{k}.jpg", bytes(data), reasons="too large")
    header = b"BM" + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 90_000, 90_000, 1, 24, *[0] * 6)
    return Mutant(f"bomb-{k}.bmp", header + bytes(6), reasons="too large")


def inks(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    """CMYK: what Pillow converts back is what was converted, as both are plain complements."""
    file, image = io.BytesIO(), Image.fromarray(pixels).convert("CMYK")
    if kind in ("PNG", "JPEG"):
        image.save(file, "JPEG", quality=98, subsampling=0)
        return Mutant(f"cmyk-{k}.jpg", file.getvalue(), pixels, tolerance=12)
    image.save(file, "TIFF")
    return Mutant(f"cmyk-{k}.tif", file.getvalue(), pixels)


def deep(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    gray = pixels[..., 0].astype(np.uint16) * 257
    expected = np.repeat(pixels[..., :1], 3, axis=2)
    kind = "TIFF" if kind in ("TIFF", "WEBP") else "PNG"
    return Mutant(f"deep-{k}.{ENDINGS[kind]}", encoded(gray, kind), expected)


def animated(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    kind = {"JPEG": "GIF", "TIFF": "GIF"}.get(kind, kind)
    few = (pixels // 64) * 64  # a GIF has 256 colors
    frames = [Image.fromarray(255 - few)] * 2
    options = {"save_all": True, "append_images": frames} | LOSSLESS.get(kind, {})
    return Mutant(f"moving-{k}.{ENDINGS[kind]}", encoded(few, kind, **options), few)


def misnamed(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    kind = "PNG" if kind == "JPEG" else kind
    wrong = {"PNG": "jpg", "TIFF": "png", "WEBP": "tif"}[kind]
    return Mutant(f"misnamed-{k}.{wrong}", encoded(pixels, kind, **LOSSLESS[kind]), pixels)


def empty(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    data = b"" if k % 2 else bytes(512)  # a file system that lost what was in it
    return Mutant(f"empty-{k}.{ENDINGS[kind]}", data, reasons="empty file|not an image")


def text(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    pages = [b"<!DOCTYPE html><p>404", b'{"error": 1}', b"\xef\xbb\xbfhello", b"%PDF-1.7\n%%EOF"]
    return Mutant(f"text-{k}.jpg", pages[k % 4], reasons="not an image")


def transparent(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    kind = "PNG" if kind == "JPEG" else kind
    seen = np.full(pixels.shape[:2], 255, np.uint8)
    seen[: len(seen) // 2] = 0
    expected = np.where(seen[..., None] == 0, 255, pixels).astype(np.uint8)
    data = encoded(np.dstack([pixels, seen]), kind, **LOSSLESS[kind])
    return Mutant(f"clear-{k}.{ENDINGS[kind]}", data, expected)


def doubled(k: int, pixels: np.ndarray, kind: str) -> Mutant:
    """Whole, with rubbish behind its end: every decoder stops at the end."""
    kind = "PNG" if kind in ("JPEG", "WEBP") else kind
    data = encoded(pixels, kind, **LOSSLESS[kind])
    return Mutant(f"tail-{k}.{ENDINGS[kind]}", data + data[: len(data) // 3], pixels)


def second_opinion(data: bytes) -> np.ndarray | None:
    """The pixels by another way of decoding; None where there is none, or it refuses the file."""
    if data[:4] == b"\x89PNG":
        try:
            return plain_png(data)
        except (ValueError, struct.error, zlib.error):
            return None
    if data[:3] == b"\xff\xd8\xff":
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        mode = torchvision.io.ImageReadMode.RGB
        try:
            return torchvision.io.decode_image(buffer, mode).permute(1, 2, 0).numpy()
        except RuntimeError:
            return None
    parser = ImageFile.Parser()
    try:
        for start in range(0, len(data), 100):
            parser.feed(data[start : start + 100])
        return np.asarray(parser.close().convert("RGB"))
    except Exception:  # whatever a decoder raises, it refuses
        return None


def plain_png(data: bytes) -> np.ndarray | None:
    """PNG as its standard has it, checksums included; None for other than plain 8-bit RGB."""
    at, body, size, end = 8, b"", None, False
    while not end:
        length, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(name + content) != checksum:
            raise ValueError("wrong checksum")
        if name == b"IHDR":
            size = struct.unpack(">II", content[:8])
            if content[8:] != b"\x08\x02\0\0\0":
                return None
        body += content if name == b"IDAT" else b""
        at, end = at + 12 + length, name == b"IEND"
    if size is None:
        raise ValueError("no header")
    width, height = size
    unpacked = np.frombuffer(zlib.decompress(body), np.uint8)
    rows = unpacked.reshape(height, 1 + 3 * width)
    above = [0] * (3 * width)
    pixels = []
    for row in rows.tolist():
        above = unfiltered(row[0], row[1:], above)
        pixels.append(above)
    return np.array(pixels, np.uint8).reshape(height, width, 3)


def unfiltered(kind: int, row: list[int], above: list[int]) -> list[int]:
    """One row of a PNG: each byte was stored as its difference from a guess (PNG, section 9)."""
    if kind > 4:
        raise ValueError("no such filter")
    out: list[int] = []
    for i, value in enumerate(row):
        left, corner = (out[i - 3], above[i - 3]) if i >= 3 else (0, 0)
        near = left + above[i] - corner
        paeth = min((left, above[i], corner), key=lambda known: abs(near - known))
        guess = (0, left, above[i], (left + above[i]) // 2, paeth)[kind]
        out.append((value + guess) % 256)
    return out


def judged(mutant: Mutant, image: np.ndarray | None, reason: str) -> str:
    """What is wrong with how a file was taken, "" for nothing."""
    if image is None:
        if not mutant.reasons:
            return f"{mutant.name}: left out ({reason}), but it is good"
        if not reason or "\n" in reason or not re.search(mutant.reasons, reason):
            return f"{mutant.name}: left out for a wrong reason ({reason})"
        return ""
    if mutant.pixels is None:
        if mutant.reasons != ".":
            return f"{mutant.name}: was decoded, but it is {mutant.reasons}"
        other = second_opinion(mutant.data)
        if other is None:
            return ""
        if other.shape != image.shape:
            return f"{mutant.name}: {image.shape}, but another decoder says {other.shape}"
        near = np.abs(other.astype(int) - image).mean() < 4
        return "" if near else f"{mutant.name}: other pixels than another decoder's"
    if image.shape != mutant.pixels.shape:
        return f"{mutant.name}: {image.shape}, not {mutant.pixels.shape}"
    worst = int(np.abs(image.astype(int) - mutant.pixels).max())
    return "" if worst <= mutant.tolerance else f"{mutant.name}: pixels differ by {worst}"


def check(count: int) -> tuple[list[str], dict[str, int]]:
    """Decode `count` mutants, memory and time limited: what went wrong, and how many were good."""
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
    wrong, counts = [], {"decoded": 0, "left out": 0}
    for mutant in mutants(count):
        start = time.perf_counter()
        try:
            image, reason = decode_image(mutant.data), ""
        except BadImage as error:
            image, reason = None, error.reason
        taken = time.perf_counter() - start
        counts["left out" if image is None else "decoded"] += 1
        if taken > LIMIT_S:
            wrong.append(f"{mutant.name}: took {taken:.1f} s")
        if complaint := judged(mutant, image, reason):
            wrong.append(complaint)
    return wrong, counts


def check_apart(count: int) -> tuple[list[str], dict[str, int]]:
    """`check` in a process of its own: a decoder that crashes ends that one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(check, count).result()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.soak)])
def test_mutated_files(count):
    wrong, counts = check_apart(count)
    assert not wrong
    assert min(counts.values()) > count / 5, "both must happen for this to mean anything"


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.soak)])
def test_a_folder_of_them_is_gone_through(tmp_path, count):
    """Every image or its replacement, and a report that names exactly the bad ones."""
    expected = set()
    for mutant in mutants(count):
        (tmp_path / mutant.name).write_bytes(mutant.data)
        if mutant.reasons and mutant.reasons != ".":
            expected.add(mutant.name)
    source, quarantine = open_source(tmp_path), Quarantine()
    assert len(source) == count
    for i in range(count):
        image, used, bad = safe_image(source, i)
        quarantine.add(bad)
        assert image.ndim == 3 and image.dtype == np.uint8 and source.ids[used]
    names = {item.id for item in quarantine.items()}
    assert expected <= names
    assert all(name.startswith(("flip-", "noise-")) for name in names - expected)
    assert all(item.reason for item in quarantine.items())
