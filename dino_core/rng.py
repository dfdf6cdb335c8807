"""Keyed random numbers: the same key gives the same numbers, in any process, in any order.

A draw is named by what it is for, e.g. `generator(seed, "augment", epoch, image, view)`; where
torch insists on its global generator (fresh weights, drop path), that is seeded by such a key right
before. So neither the number of workers, nor prefetching, nor the moment a run was killed can
change it. The bits come from Philox, a counter-based generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011), keyed by a BLAKE2 hash.
"""

import hashlib

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


def _plain(part: Part) -> Part:
    """Numpy integers and bools count as the Python integers they equal."""
    return part if isinstance(part, str) else int(part)
