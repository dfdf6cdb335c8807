"""Multi-crop as a configuration: how many views, how large, and how often each change happens.

The defaults are the published DINO recipe (Caron et al. 2021, section 3 and appendix; global scale
0.4 to 1 as for the ViT models). Views are numbered: 0 and 1 are the global crops, the rest local.
"""

from dataclasses import dataclass

from dino_core.errors import UserError

Range = tuple[float, float]
PerKind = tuple[float, float, float]

GLOBAL_VIEWS = 2


@dataclass(frozen=True)
class MultiCrop:
    """The augmentation of one image into `views` crops. Raises `UserError` for an impossible one.

    Sizes are in pixels, scales in shares of the image's area, `blur_sigma` in pixels of the crop;
    all else are probabilities in [0, 1] or strengths as `torchvision.transforms.ColorJitter` means
    them. `blur` and `solarize` are for the first global, the second global, and each local crop.
    """

    global_size: int = 224
    local_size: int = 96
    local_count: int = 8
    global_scale: Range = (0.4, 1.0)
    local_scale: Range = (0.05, 0.4)
    flip: float = 0.5
    jitter: float = 0.8  # probability that a view's colors are jittered at all
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: PerKind = (1.0, 0.1, 0.5)
    blur_sigma: Range = (0.1, 2.0)
    solarize: PerKind = (0.0, 0.2, 0.0)

    def __post_init__(self) -> None:
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            _require(size > 0, name, size, "must be a number of pixels above 0")
        _require(self.local_count >= 0, "local_count", self.local_count, "must be 0 or more")
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            fits = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
            _require(fits, name, scale, "must be two shares of the area with 0 < low <= high <= 1")
        for name in ("flip", "jitter", "grayscale"):
            chance = getattr(self, name)
            _require(0 <= chance <= 1, name, chance, "must be a probability from 0 to 1")
        for name in ("blur", "solarize"):
            chances = getattr(self, name)
            fits = len(chances) == 3 and all(0 <= chance <= 1 for chance in chances)
            _require(fits, name, chances, "must be three probabilities: global 1, global 2, local")
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(self, name)
            _require(0 <= strength < float("inf"), name, strength, "must be 0 or more")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "must be from 0 to 0.5 of the color circle")
        sigma = self.blur_sigma
        fits = len(sigma) == 2 and 0 < sigma[0] <= sigma[1] < float("inf")
        _require(fits, "blur_sigma", sigma, "must be two widths in pixels with 0 < low <= high")

    @property
    def views(self) -> int:
        """Crops per image: two global ones and the local ones."""
        return GLOBAL_VIEWS + self.local_count

    def size(self, view: int) -> int:
        """Side of a view's crop in pixels."""
        return self.global_size if view < GLOBAL_VIEWS else self.local_size

    def scale(self, view: int) -> Range:
        """Range of a view's share of the image's area."""
        return self.global_scale if view < GLOBAL_VIEWS else self.local_scale


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}, but it {rule}")
