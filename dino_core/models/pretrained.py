"""`timm:NAME`: pretrained weights of timm, from the local cache or the network, no pickle.

Only safetensors are downloaded. A name found in the cache needs no network, and without one a name
that is not there says so at once instead of trying again for a minute.
"""

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from timm.models import get_pretrained_cfg

from dino_core.errors import UserError
from dino_core.models.create import family_of
from dino_core.models.info import ModelInfo, PosEmbedMode
from dino_core.models.layouts import xcit
from dino_core.models.weights import State, Weights, read_safetensors

FILE_NAME = "model.safetensors"
PATIENCE = 5.0  # seconds for the hub to answer at all


def read_timm(name: str) -> Weights:
    """Weights and description of a pretrained timm model; its classifier, if any, is left out.

    Raises `UserError` for a name timm does not know, one without pretrained weights, a model that
    can be no backbone, or when the file is neither in the cache nor to be had.
    """
    architecture = name.partition(".")[0]
    family_of(architecture)
    config = _pretrained_config(name)
    tensors, _ = read_safetensors(_weights_file(name, config.hf_hub_id))
    classifiers = config.classifier or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    prefixes = tuple(f"{classifier}." for classifier in classifiers)
    backbone = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefixes)}
    patch = _patch_size(architecture, backbone, f"timm:{name}")
    return Weights(pretrained_info(architecture, config, patch), backbone, None)


def pretrained_info(architecture: str, config: Any, patch_size: int) -> ModelInfo:
    """A ModelInfo from timm's pretrained configuration: native size, normalization, license."""
    channels, height, width = config.input_size
    if height != width:
        raise UserError(f"timm:{architecture}: made for {height} x {width} px, and not for squares")
    return ModelInfo(
        architecture,
        patch_size=patch_size,
        image_size=height,
        channels=channels,
        mean=tuple(config.mean),
        std=tuple(config.std),
        pos_embed=_published_mode(architecture, config.tag or ""),
        license=config.license or "",
    )


def _patch_size(architecture: str, state: State, name: str) -> int:
    """The side of a patch in pixels, told from the weights; 1 for a convolutional network."""
    family = family_of(architecture)
    if family == "xcit":
        return xcit.patch_size(state)
    if family != "vit":
        return 1
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4:
        raise UserError(f"{name}: its weights have no patch embedding, so it is no plain ViT")
    return kernel.shape[-1]


def _published_mode(architecture: str, tag: str) -> PosEmbedMode:
    """How the weights' own code resamples: DINO and DINOv2 without registers share one way."""
    dinov2 = architecture.endswith("_dinov2") and "_reg" not in architecture
    return "dino" if tag == "dino" or dinov2 else "timm"


def _pretrained_config(name: str) -> Any:
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, the tag does not
        config = None
    if config is None or not config.hf_hub_id:
        known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True, include_tags=True)
        there = f"there are: {', '.join(known)}" if known else "timm has none for this architecture"
        raise UserError(f"timm:{name}: no pretrained weights of this name; {there}")
    return config


def _weights_file(name: str, repository: str) -> Path:
    """The weights on this disk, downloaded first where the cache lacks them."""
    cached = try_to_load_from_cache(repository, FILE_NAME, cache_dir=constants.HF_HUB_CACHE)
    if isinstance(cached, str):
        return Path(cached)
    hint = "download it once where there is a network, or name a weights file"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"timm:{name}: not in the cache, and HF_HUB_OFFLINE is set; {hint}")
    if not _answers(constants.ENDPOINT):
        raise UserError(
            f"timm:{name}: not in the cache, and {constants.ENDPOINT} is out of reach; {hint}"
        )
    try:
        return Path(hf_hub_download(repository, FILE_NAME, cache_dir=constants.HF_HUB_CACHE))
    except Exception as error:  # many libraries speak here; each failure is one of the download
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"timm:{name}: the download failed ({reason}); {hint}") from error


def _answers(address: str) -> bool:
    """Whether a server answers, with whatever status, within `PATIENCE` seconds."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            pass

    # Looking up a name cannot be given a time limit, a thread can be left behind.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(PATIENCE)
    return answered.is_set()
