"""Corruptions: what they promise of every picture, and each against a formula of its own."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation.corruptions import CHANGES, SEVERITIES, SIDE, STRENGTHS, corrupt

RANDOM = ("gaussian_noise", "shot_noise", "motion_blur", "rotation")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Photograph-like, 256 px on the short side."""
    source = open_source("scenes:3")
    return [
        np.asarray(Image.fromarray(source.image(i)).resize((300, SIDE), Image.Resampling.BICUBIC))
        for i in range(len(source))
    ]


def change(image: np.ndarray, name: str, severity: int, index: int = 0) -> float:
    spoiled = corrupt(image, name, severity, index=index).astype(float)
    return float(np.abs(spoiled - image).mean())


def test_every_strength_has_its_change() -> None:
    assert STRENGTHS.keys() == CHANGES.keys()
    assert all(len(strengths) == len(SEVERITIES) for strengths in STRENGTHS.values())


@pytest.mark.parametrize("name", STRENGTHS)
def test_severity_grows_the_change(name: str, pictures: list[np.ndarray]) -> None:
    for index, image in enumerate(pictures):
        changes = [change(image, name, severity, index) for severity in SEVERITIES]
        assert changes[0] > 0.2
        assert (np.diff(changes) > 0).all()


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (33, 47, 3), (61, 9, 1), (5, 900, 5)])
def test_shape_and_type_are_kept_and_the_image_is_left_alone(
    name: str, shape: tuple[int, int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    before = image.copy()
    image.flags.writeable = False
    for severity in SEVERITIES:
        spoiled = corrupt(image, name, severity)
        assert spoiled.shape == shape and spoiled.dtype == np.uint8
        assert not np.shares_memory(spoiled, image)
    assert (image == before).all()


@pytest.mark.parametrize("name", STRENGTHS)
def test_it_repeats_exactly_whatever_came_between(name: str, pictures: list[np.ndarray]) -> None:
    spoil = partial(corrupt, name=name, severity=3, seed=5, index=2)
    once = spoil(pictures[0])
    np.random.default_rng(0).random(7)
    spoil(pictures[1])
    assert (spoil(pictures[0]) == once).all()


@pytest.mark.parametrize("name", STRENGTHS)
def test_only_what_is_random_differs_by_image_and_seed(
    name: str, pictures: list[np.ndarray]
) -> None:
    image = pictures[0]
    kinds = {
        corrupt(image, name, 3, seed=seed, index=index).tobytes()
        for seed in range(2)
        for index in range(4)
    }
    turns = {"rotation": 2}  # left or right
    assert len(kinds) == (turns.get(name, 8) if name in RANDOM else 1)


@pytest.mark.parametrize("name", sorted(STRENGTHS.keys() - {"gaussian_noise", "shot_noise"}))
def test_a_gray_picture_stays_gray(name: str, pictures: list[np.ndarray]) -> None:
    gray = np.repeat(pictures[0][:, :, :1], 3, axis=2)
    spoiled = corrupt(gray, name, 5).astype(int)
    assert np.ptp(spoiled, axis=2).max() <= (1 if name == "jpeg" else 0)
    assert name != "grayscale" or (spoiled == gray).all()


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "contrast", "pixelate"])
def test_an_even_picture_is_left_as_it_is(name: str) -> None:
    even = np.full((40, 50, 3), 77, np.uint8)
    assert (corrupt(even, name, 5) == even).all()


def test_noise_is_as_strong_as_said() -> None:
    middle = np.full((300, 300, 3), 128, np.uint8)
    noise = corrupt(middle, "gaussian_noise", 1) - 128.0
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(0.04 * 255, rel=0.01)
    light = corrupt(middle, "shot_noise", 1) - 128.0  # Poisson: the variance is the mean
    assert light.mean() == pytest.approx(0, abs=0.2)
    assert light.std() == pytest.approx(255 / 80 * np.sqrt(128 / 255 * 80), rel=0.01)


def test_noise_of_a_severity_is_that_of_another_stronger() -> None:
    middle = np.full((50, 50, 3), 128, np.uint8)
    weak, strong = (corrupt(middle, "gaussian_noise", s, index=4) - 128.0 for s in (1, 2))
    assert np.abs(strong - 2 * weak).max() <= 1.5  # 0.08 is twice 0.04; both were rounded


def test_brightness_and_contrast_by_hand() -> None:
    image = np.array([[[0, 100, 250], [50, 100, 100]]], np.uint8)  # of mean 100
    brighter = corrupt(image, "brightness", 2)  # by 51
    assert brighter.tolist() == [[[51, 151, 255], [101, 151, 151]]]
    assert corrupt(image, "contrast", 2).tolist() == [[[50, 100, 175], [75, 100, 100]]]


def test_grayscale_ends_at_pillow_s_gray(pictures: list[np.ndarray]) -> None:
    gray = np.asarray(Image.fromarray(pictures[0]).convert("L")).astype(int)
    assert np.abs(corrupt(pictures[0], "grayscale", 5) - gray[:, :, None]).max() <= 1


def test_pixelate_makes_even_cells(pictures: list[np.ndarray]) -> None:
    square = pictures[0][:, :SIDE]
    spoiled = corrupt(square, "pixelate", 1)  # 128 cells: of 2 x 2 pixels
    means = square.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(spoiled - means.repeat(2, 0).repeat(2, 1)).max() <= 1


@pytest.mark.parametrize("name", ["motion_blur", "gaussian_blur"])
def test_blur_of_a_point_by_its_shape(name: str) -> None:
    """A white point spreads about where it was: along a line, or all around."""
    point = np.zeros((257, 257, 3), np.uint8)
    point[128, 128] = 255
    spread = corrupt(point, name, 2)[:, :, 0]
    rows, columns = np.nonzero(spread)
    assert abs(rows.mean() - 128) < 0.6 and abs(columns.mean() - 128) < 0.6
    across, along = np.sort(np.linalg.svd(np.stack([rows, columns]) - 128.0)[1])
    assert (across < 0.2 * along) == (name == "motion_blur")


def test_lengths_go_with_the_size(pictures: list[np.ndarray]) -> None:
    """A picture twice as large is blurred as the small one is, twice as wide."""
    small = pictures[0]
    large = np.asarray(Image.fromarray(small).resize((600, 2 * SIDE), Image.Resampling.BICUBIC))
    after = Image.fromarray(corrupt(large, "gaussian_blur", 4)).resize((300, SIDE))
    assert np.abs(corrupt(small, "gaussian_blur", 4) - np.asarray(after, float)).mean() < 1.0


def test_rotation_is_about_the_center_by_the_degrees_that_are_said() -> None:
    image = np.zeros((101, 101, 3), np.uint8)
    image[45:56, 45:56] = 200  # in the middle: it stays there
    image[48:53, 90:95] = 200  # at the right: it goes 40 px x sin(8) up or down
    turned = corrupt(image, "rotation", 2)[:, :, 0]
    assert turned[50, 50] == 200
    moved = np.flatnonzero(turned[:, 90:94].mean(axis=1) > 100).mean() - 50
    assert abs(moved) == pytest.approx(42 * np.sin(np.radians(8)), abs=1)


@pytest.mark.parametrize(
    ("name", "severity", "sentence"),
    [("fog", 1, "'fog' is unknown; there are gaussian_noise,"), ("jpeg", 6, "severity 6 of jpeg")],
)
def test_what_there_is_not_is_a_sentence(name: str, severity: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        corrupt(np.zeros((4, 4, 3), np.uint8), name, severity)
