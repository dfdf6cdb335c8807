"""Keyed random numbers: the same key gives the same numbers, in any process, in any order.

A draw is named by what it is for, e.g. `generator(seed, "augment", epoch, image, view)`; where
torch insists on its global generator (fresh weights, drop path), that is seeded by such a key right
before. So neither the number of workers, nor prefetching, nor the moment a run was killed can
change it. The bits come from Philox, a counter-based generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011), keyed by a BLAKE2 hash.

Making a generator costs more than its numbers. Where thousands of keys each need a few,
`uniforms(digests(...), blocks)` computes what their generators would draw, for all at once.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

Part = int | str


def digest(*key: Part) -> int:
    """Hash a key of integers and strings to an unsigned 128-bit integer."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in map(_plain, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*key: Part) -> np.random.Generator:
    """A numpy generator that belongs to this key alone."""
    return np.random.Generator(np.random.Philox(key=digest(*key)))


def permutation(n: int, *key: Part) -> np.ndarray:
    """A random order of `range(n)`, int64 [n], that belongs to this key."""
    return generator(*key).permutation(n)


def torch_seed(*key: Part) -> int:
    """A seed in [0, 2**63) for `torch.manual_seed` or `torch.Generator.manual_seed`."""
    return digest(*key) & (2**63 - 1)


BLOCK = 4  # numbers that Philox makes at a time
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64)  # added to the key each round
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_AT_ONCE = 16_384  # blocks that are computed together: their numbers stay in the core's cache


def digests(prefix: tuple[Part, ...], ends: Iterable[tuple[int, ...]]) -> np.ndarray:
    """`digest(*prefix, *end)` of each end, uint64 [n, 2], the lower half first."""
    started = hashlib.blake2b(digest_size=16)
    started.update("".join(f"{type(p).__name__}:{p}\x1f" for p in map(_plain, prefix)).encode())
    hashes = []
    for end in ends:
        hashed = started.copy()
        hashed.update("\x1f".join([f"int:{part}" for part in end]).encode())
        hashes.append(hashed.digest())
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2).astype(np.uint64)


def uniforms(keys: np.ndarray, blocks: Iterable[int]) -> np.ndarray:
    """What `generator(...).random(...)` of each key holds in some blocks of four numbers.

    `keys` uint64 [n, 2] as from `digests`. Block b stands for the numbers 4 b to 4 b + 3. Returns
    float64 [n, 4 x blocks] in [0, 1), the same bits as numpy's.
    """
    counters = np.array(list(blocks), np.uint64) + np.uint64(1)  # numpy counts before it draws
    drawn = np.empty((len(keys), len(counters), BLOCK))
    together = max(1, _AT_ONCE // max(1, len(counters)))
    for start in range(0, len(keys), together):
        part = slice(start, start + together)
        bits = _philox(keys[part], counters)
        for word, values in enumerate(bits):
            np.multiply(values >> np.uint64(11), 2.0**-53, out=drawn[part, :, word])
    return drawn.reshape(len(keys), BLOCK * len(counters))


def _philox(keys: np.ndarray, counters: np.ndarray) -> list[np.ndarray]:
    """Philox 4x64-10: the four words of each key's blocks, uint64 [n, blocks] each."""
    shape = (len(keys), len(counters))
    zero = np.zeros(shape, np.uint64)
    words = [np.broadcast_to(counters, shape), zero, zero, zero]
    key = keys.copy()
    for turn in range(_ROUNDS):
        if turn:
            key += _WEYL
        high0, low0 = _product(_MULTIPLIERS[0], words[0])
        high1, low1 = _product(_MULTIPLIERS[1], words[2])
        words = [
            high1 ^ words[1] ^ key[:, :1],
            low1,
            high0 ^ words[3] ^ key[:, 1:],
            low0,
        ]
    return words


def _product(constant: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of a constant times 64-bit numbers, by way of 32-bit halves."""
    low, high = np.uint64(constant & 0xFFFFFFFF), np.uint64(constant >> 32)
    values_low, values_high = values & _LOW, values >> _HALF
    middle = values_low * high
    middle += (values_low * low) >> _HALF
    other = values_high * low
    other += middle & _LOW
    upper = values_high * high
    upper += middle >> _HALF
    upper += other >> _HALF
    return upper, values * np.uint64(constant)


def _plain(part: Part) -> Part:
    """Numpy integers and bools count as the Python integers they equal."""
    return part if isinstance(part, str) else int(part)
