"""Functions compiled by numba once, and kept for the processes to come."""

from collections.abc import Callable

import numba


def compiled(signature: str, function: Callable[..., None]) -> Callable[..., None]:
    """`function` compiled for `signature` without the GIL, or as an earlier process compiled it.

    numba keeps what it compiled beside the function's file, or in the user's cache folder where
    that cannot be written; where neither can, every process compiles anew.
    """
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except Exception:  # no folder for the cache, a full disk, or a damaged cache file
        return numba.njit(signature, nogil=True)(function)
