"""Where images come from: `open_source(spec)`, safe decoding, generated scenes."""

from dino_core.data.decode import BadImage, decode_image
from dino_core.data.opening import open_source
from dino_core.data.order import batch_indices, epoch_order
from dino_core.data.quarantine import Quarantine, Quarantined, require_readable, safe_image
from dino_core.data.source import Source

__all__ = [
    "BadImage",
    "Quarantine",
    "Quarantined",
    "Source",
    "batch_indices",
    "decode_image",
    "epoch_order",
    "open_source",
    "require_readable",
    "safe_image",
]
