"""PCA colors: scikit-learn's components, shared colors, foreground by hand, files and damage."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from dino_core.errors import UserError
from dino_core.lenses import pca
from dino_core.lenses.pca import PcaBasis, colors, fit, foreground, otsu
from dino_core.lenses.tokens import Tokens, read_tokens


def tokens_of(patches: np.ndarray) -> Tokens:
    """Patches [h, w, D] as they are, of one made-up model."""
    height, width = patches.shape[:2]
    return Tokens(
        patches=patches.astype(np.float32),
        norms=np.ones((height, width), np.float32),
        keys=patches.astype(np.float32),
        cls=patches[0, 0].astype(np.float32),
        image_size=(8 * height, 8 * width),
        source_size=(8 * height, 8 * width),
        patch_size=8,
        model="runs/a",
        model_hash="abc",
    )


def random_tokens(seed: int, height: int = 6, width: int = 9, dim: int = 8) -> Tokens:
    """Spread differently in every direction, so that components are well told apart."""
    random = np.random.default_rng(seed)
    turned = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    spread = 2.0 ** -np.arange(dim)
    return tokens_of(random.standard_normal((height, width, dim)) * spread @ turned + 0.3)


def photo_like(seed: int, height: int = 10, width: int = 12) -> tuple[Tokens, np.ndarray]:
    """An object of its own kind in the middle of a ground: tokens, and where the object is."""
    random = np.random.default_rng(seed)
    inside = np.zeros((height, width), bool)
    inside[3:8, 4:10] = True
    kinds = np.eye(8)[[0, 1]]
    patches = kinds[inside.astype(int)] + 0.05 * random.standard_normal((height, width, 8))
    return tokens_of(patches), inside


def flat(tokens: Tokens) -> np.ndarray:
    return tokens.patches.reshape(-1, tokens.patches.shape[-1])


def same(one: PcaBasis, other: PcaBasis) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(PcaBasis)
    )


# -- components ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[(6, 9)], [(6, 9), (4, 5), (11, 3)], [(1, 4)]])
def test_components_are_scikit_learn_s(sizes):
    images = [random_tokens(i, *size) for i, size in enumerate(sizes)]
    basis = fit(images)
    every = np.concatenate([flat(tokens) for tokens in images]).astype(np.float64)
    theirs = PCA(n_components=3, svd_solver="full").fit(every)
    np.testing.assert_allclose(basis.mean, every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        np.abs((basis.components * theirs.components_).sum(axis=1)), 1, atol=1e-5
    )
    # And without a library: right singular vectors of the centered patches.
    directions = np.linalg.svd(every - every.mean(axis=0))[2][:3]
    np.testing.assert_allclose(np.abs(basis.components @ directions.T), np.eye(3), atol=1e-4)


def test_the_largest_entry_is_positive():
    for seed in range(5):
        components = fit([random_tokens(seed)]).components
        largest = np.abs(components).argmax(axis=1)
        assert (components[np.arange(3), largest] > 0).all()


def test_colors_by_hand():
    """Along each direction the 1st percentile is 0, the 99th 255, with straight lines between."""
    tokens = random_tokens(3, 12, 15)
    basis = fit([tokens])
    painted = colors(basis, tokens)
    assert painted.shape == (12, 15, 3) and painted.dtype == np.uint8
    for i in range(3):
        along = (flat(tokens).astype(np.float64) - basis.mean) @ basis.components[i]
        low, high = np.quantile(along, [0.01, 0.99])
        expected = np.clip((along - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(painted[..., i].reshape(-1), expected, atol=0.51)
        assert painted[..., i].min() == 0 and painted[..., i].max() == 255


def test_a_patch_has_one_color_wherever_it_lies():
    first, second = random_tokens(1, 7, 9), random_tokens(2, 5, 4)
    second.patches[3, 2] = first.patches[6, 1]
    basis = fit([first, second])
    np.testing.assert_array_equal(colors(basis, first)[6, 1], colors(basis, second)[3, 2])
    assert foreground(basis, first)[6, 1] == foreground(basis, second)[3, 2]


def test_the_same_again_in_whatever_order():
    images = [random_tokens(i, 5 + i, 7) for i in range(4)]
    assert same(fit(images), fit(iter(images)))
    again = fit(images[::-1])
    np.testing.assert_allclose(again.components, fit(images).components, atol=1e-5)


# -- foreground ---------------------------------------------------------------------------------


def test_the_object_in_the_middle_is_the_foreground():
    images, inside = zip(*(photo_like(seed) for seed in range(3)), strict=True)
    for basis in (fit(images), fit(images, foreground=True), fit(images[:1])):
        for tokens, truth in zip(images, inside, strict=True):
            np.testing.assert_array_equal(foreground(basis, tokens), truth)


def test_the_foreground_does_not_hang_on_the_sign_of_a_component():
    """Object and ground exchanged in feature space: the place decides, not the feature."""
    tokens, inside = photo_like(0)
    mirrored = tokens_of(-tokens.patches)
    np.testing.assert_array_equal(foreground(fit([mirrored]), mirrored), inside)
    inverted = tokens_of(tokens.patches[..., [1, 0, *range(2, 8)]])
    np.testing.assert_array_equal(foreground(fit([inverted]), inverted), inside)


def test_an_object_larger_than_the_ground_and_cut_by_the_border():
    random = np.random.default_rng(0)
    inside = np.zeros((12, 10), bool)
    inside[2:, 1:9] = True  # a portrait: two thirds of the picture, touches its lower border
    patches = np.eye(8)[inside.astype(int)] + 0.05 * random.standard_normal((12, 10, 8))
    tokens = tokens_of(patches)
    np.testing.assert_array_equal(foreground(fit([tokens]), tokens), inside)


def test_the_second_pca_is_of_the_foreground_alone():
    images, inside = zip(*(photo_like(seed) for seed in range(3)), strict=True)
    basis = fit(images, foreground=True)
    objects = np.concatenate(
        [tokens.patches[truth] for tokens, truth in zip(images, inside, strict=True)]
    )
    theirs = PCA(n_components=3, svd_solver="full").fit(objects.astype(np.float64))
    np.testing.assert_allclose(basis.mean, objects.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        np.abs((basis.components * theirs.components_).sum(axis=1)), 1, atol=1e-4
    )
    for tokens, truth in zip(images, inside, strict=True):
        painted = colors(basis, tokens)
        assert not painted[~truth].any()
        assert painted[truth].std() > 50  # the whole range is for the object


@settings(max_examples=60)
@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=12))
def test_otsu_s_cut_leaves_the_least_variance_within(values):
    values = np.array(values)

    def within(cut: float) -> float:
        groups = [values[values <= cut], values[values > cut]]
        return sum(((group - group.mean()) ** 2).sum() for group in groups if len(group))

    least = min(within(cut) for cut in values)
    assert within(otsu(values)) == pytest.approx(least, abs=1e-9)


def test_otsu_s_cut_by_hand():
    assert otsu(np.array([9.0, 0, 1, 10, 8])) == 4.5


# -- what has no spread -------------------------------------------------------------------------


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (4, 5)])
def test_a_picture_of_one_feature_is_gray(grid, only):
    tokens = tokens_of(np.full((*grid, 8), 0.35355338))
    basis = fit([tokens], foreground=only)
    assert not basis.components.any()
    assert foreground(basis, tokens).all()
    np.testing.assert_array_equal(colors(basis, tokens), 128)


@pytest.mark.parametrize("only", [False, True])
def test_two_patches_differ_in_one_direction(only):
    tokens = tokens_of(np.eye(8)[None, :2])
    basis = fit([tokens], foreground=only)
    painted = colors(basis, tokens)
    if only:  # one of the two is left, and nothing differs from it
        assert sorted(painted[0].sum(axis=-1)) == [0, 3 * 128]
    else:
        assert sorted(painted[0, :, 0]) == [0, 255]
        np.testing.assert_array_equal(painted[..., 1:], 128)


def test_an_untrained_model_s_own_tokens(model):
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    tokens = read_tokens(model, image, size=40)
    for only in (False, True):
        painted = colors(fit([tokens], foreground=only), tokens)
        assert painted.shape == (5, 8, 3)
        assert len(np.unique(painted.reshape(-1, 3), axis=0)) > 5


# -- many images --------------------------------------------------------------------------------


def test_of_many_patches_each_image_gives_its_share(monkeypatch):
    images = [random_tokens(i, 10 + i % 3, 10) for i in range(40)]  # 4,390 patches
    exact = fit(images)
    monkeypatch.setattr(pca, "SAMPLE", 1200)
    sample = pca._sample(images)
    assert len(sample.patches) == sum(-(-tokens.grid[0] * 10 // 4) for tokens in images)
    rows = {tuple(patch) for patch in sample.patches.tolist()}
    for tokens in images:
        assert len(rows & {tuple(patch) for patch in flat(tokens).tolist()}) == -(
            -tokens.grid[0] * 10 // 4
        )
    part = fit(images)
    assert (np.abs((part.components * exact.components).sum(axis=1)) > 0.97).all()
    reversed_rows = {tuple(patch) for patch in pca._sample(images[::-1]).patches.tolist()}
    assert rows == reversed_rows


def test_every_image_gives_at_least_one_patch(monkeypatch):
    monkeypatch.setattr(pca, "SAMPLE", 10)
    images = [random_tokens(i, 3, 3) for i in range(25)]
    assert len(pca._sample(images).patches) == 25


def test_the_sample_knows_its_border():
    tokens, _ = photo_like(0, 6, 7)
    tokens.patches[..., 0] = 0
    tokens.patches[1:-1, 1:-1, 0] = 1
    sample = pca._sample([tokens])
    np.testing.assert_array_equal(sample.border, sample.patches[:, 0] == 0)
    assert sample.border.sum() == 22


# -- models and files ---------------------------------------------------------------------------


def test_other_models_and_no_image_are_refused():
    mine, other = random_tokens(0), replace(random_tokens(1), model="starter", model_hash="else")
    with pytest.raises(UserError, match="starter and with runs/a cannot share colors"):
        fit([mine, other])
    with pytest.raises(UserError, match="at least one image"):
        fit([])
    basis = fit([mine])
    for use in (colors, foreground):
        with pytest.raises(UserError, match="colors are of runs/a, the patches of starter"):
            use(basis, other)


@pytest.mark.parametrize("only", [False, True])
def test_round_trip(tmp_path: Path, only):
    tokens, _ = photo_like(1)
    basis = fit([tokens], foreground=only)
    basis.save(tmp_path / "colors")  # no suffix is added
    again = PcaBasis.load(tmp_path / "colors")
    assert same(basis, again)
    assert (type(again.threshold), type(again.model)) == (float, str)
    assert again.foreground_only is only
    np.testing.assert_array_equal(colors(again, tokens), colors(basis, tokens))


def loaded(path: Path) -> tuple[PcaBasis | None, str]:
    """The basis, or why there is none."""
    try:
        return PcaBasis.load(path), ""
    except UserError as error:
        return None, str(error)


def test_a_damaged_file_is_refused_or_reads_the_same(tmp_path: Path):
    """Any byte of it may flip: where it matters, the sentence comes instead of other colors."""
    basis = fit([random_tokens(0, 3, 3, 4)])
    path = tmp_path / "colors.npz"
    basis.save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        read, sentence = loaded(path)
        assert same(read, basis) if read else sentence.startswith(f"{path}: ")
        refused += read is None
    assert refused > len(whole) // 10
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"colors.npz: not a PCA basis, or damaged; fit it"):
            PcaBasis.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": np.asarray(7)}, "its version is 7, this program reads 1"),
        ({"axis": None}, "it lacks axis"),
        ({"version": None}, "it lacks version"),
        ({"components": np.zeros((2, 8), np.float32)}, r"components is float32 of shape \(2, 8\)"),
        ({"mean": np.zeros((8, 1), np.float32)}, r"mean is float32 of shape"),
        ({"low": np.full(3, np.nan, np.float32)}, "low is not finite"),
        ({"model": np.asarray(3)}, "model is int64"),
    ],
)
def test_what_is_not_a_basis_is_refused(tmp_path: Path, change, says):
    path = tmp_path / "colors.npz"
    fit([random_tokens(0)]).save(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file) | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=says):
        PcaBasis.load(path)


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such file; fit colors"):
        PcaBasis.load(tmp_path / "none.npz")
    with pytest.raises(UserError, match="cannot be read"):
        PcaBasis.load(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez(tmp_path / "objects.npz", mean=np.array([{}], dtype=object))
    for name in ("array.npy", "text.npz", "objects.npz"):
        with pytest.raises(UserError, match="not a PCA basis, or damaged"):
            PcaBasis.load(tmp_path / name)
