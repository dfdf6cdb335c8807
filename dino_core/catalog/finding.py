"""Pictures by the hash of their content, as views name them.

    content_hash(picture)                               # what `View.image` holds
    find(view.image, galleries, examples(), uploads)    # a Picture, or None

The hash is `Source.fingerprint`: of a file, BLAKE2b of its bytes, so that an uploaded copy of a
gallery's image is the same picture. Generated scenes are hashed by their number; images that a
package keeps as one array, by their pixels; copies of those are other pictures.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dino_core.catalog.entries import Example, gallery_key
from dino_core.catalog.pictures import Picture, from_example, from_gallery
from dino_core.data import BadImage, open_source
from dino_core.data.decode import read_file
from dino_core.errors import UserError

if TYPE_CHECKING:
    from dino_core.gallery import Gallery

FILES_KEPT = 1000  # hashes of files, by their time and size


def find(
    content: str,
    galleries: Iterable["Gallery"] = (),
    examples: Iterable[Example] = (),
    uploads: Iterable[Picture] = (),
) -> Picture | None:
    """The picture with this content hash: of a gallery first, where its neighbors are known.

    `uploads` must be the viewer's own: whoever has a view's link knows the hash, and nobody gets
    another's upload by it. A gallery's image whose file changed or is gone is not that picture.
    """
    of_galleries = (one for gallery in galleries for one in _in_gallery(content, gallery))
    others = (from_example(example) for example in examples)
    known = (one for one in (*others, *uploads) if _is(content, one))
    return next(of_galleries, None) or next(known, None)


def content_hash(picture: Picture) -> str:
    """The hash of a picture's content, 32 hexadecimal digits; raises `BadImage` for a file that is
    gone."""
    kind, _, rest = picture.key.partition(":")  # keys are what `pictures` makes them
    if kind == "gallery":
        return rest.rpartition(":")[2]
    if kind == "example" and rest.isdigit():
        return open_source(f"scenes:{rest}-{int(rest) + 1}").fingerprint(0)
    return file_hash(Path(rest))


def file_hash(path: Path) -> str:
    """The hash of a file's bytes, as `Source.fingerprint` has it; raises `BadImage`."""
    try:
        state = path.stat()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None
    return _file_hash(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=FILES_KEPT)
def _file_hash(path: Path, _changed: int, _size: int) -> str:
    return hashlib.blake2b(read_file(path), digest_size=16).hexdigest()


def _is(content: str, picture: Picture) -> bool:
    try:
        return content_hash(picture) == content
    except BadImage:
        return False


def _in_gallery(content: str, gallery: "Gallery") -> Iterator[Picture]:
    """The gallery's images that had this content when it was made, and have it still."""
    try:
        images = gallery.images
    except UserError:  # damaged since it was listed
        return
    had = (images["content_hash"] == content) & ~images["gone"].astype(bool)
    for row in np.flatnonzero(had.to_numpy()):
        path = images["path"].iloc[row]
        try:
            still = not isinstance(path, str) or content == file_hash(
                Path(gallery.info.root or "", path)
            )
        except BadImage:
            continue
        if still:
            yield from_gallery(gallery, gallery_key(gallery.path), int(row))
