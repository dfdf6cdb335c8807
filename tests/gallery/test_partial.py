"""Features in the making: whatever is killed when, the cursor's truth is taken up."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.errors import UserError
from dino_core.gallery.partial import (
    FACTS_PART,
    FEATURES,
    FEATURES_PART,
    PartialFeatures,
    npy_header,
)
from dino_core.rng import generator

PLAN = {"model": "m", "data": "d"}


def batch(start: int, size: int) -> tuple[np.ndarray, list[dict]]:
    """`size` images from `start` on; every third is bad."""
    facts = [
        {"index": i, "bad": "why"} if i % 3 == 2 else {"index": i}
        for i in range(start, start + size)
    ]
    good = [i for i in range(start, start + size) if i % 3 != 2]
    rows = [generator(0, "row", i).standard_normal(5).astype(np.float32) for i in good]
    return np.array(rows, np.float32).reshape(-1, 5), facts


def fill(part: PartialFeatures, total: int, size: int, stop: int | None = None) -> None:
    while part.done < total and (stop is None or part.done < stop):
        part.append(*batch(part.done, min(size, total - part.done)))


@given(st.integers(0, 2000), st.integers(1, 1000))
def test_header_is_what_numpy_writes(rows: int, dim: int) -> None:
    import io

    file = io.BytesIO(npy_header(rows, dim))
    version = np.lib.format.read_magic(file)
    assert version == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == ((rows, dim), False, np.dtype("<f4"))
    assert file.tell() == 128


@given(
    total=st.integers(1, 40),
    size=st.integers(1, 9),
    stop=st.integers(0, 40),
    garbage=st.binary(max_size=300),
    cut=st.booleans(),
)
def test_killed_after_a_commit_and_some_more(
    tmp_path_factory: pytest.TempPathFactory,
    total: int, size: int, stop: int, garbage: bytes, cut: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("part")
    killed = PartialFeatures(folder, PLAN, dim=5)
    fill(killed, total, size, stop)
    killed.commit()
    done = killed.done
    for name in (FEATURES_PART, FACTS_PART):  # what came after the cursor: anything at all
        with open(folder / name, "ab") as file:
            file.write(garbage)
    again = PartialFeatures(folder, PLAN, dim=5)
    assert (again.resumed, again.done) == (True, done)
    fill(again, total, 4)
    again.commit()
    assert [one["index"] for one in again.facts()] == list(range(total))
    again.finish()
    if cut:  # killed between the renaming and the manifest
        again = PartialFeatures(folder, PLAN, dim=5)
        assert again.done == total
        again.finish()
    expected, _ = batch(0, total)
    np.testing.assert_array_equal(np.load(folder / FEATURES), expected)


@pytest.mark.parametrize("other", [{"model": "n"}, {"data": "e"}, {"feature_hash": "2"}])
def test_another_plan_is_refused_or_redone(tmp_path: Path, other: dict[str, str]) -> None:
    plan = PLAN | {"feature_hash": "1"}
    part = PartialFeatures(tmp_path, plan, dim=5)
    fill(part, 10, 5)
    part.close()
    before = (tmp_path / FEATURES_PART).read_bytes()
    with pytest.raises(UserError, match=r"half-made gallery .*10 images done.*--redo"):
        PartialFeatures(tmp_path, plan | other, dim=5)
    assert (tmp_path / FEATURES_PART).read_bytes() == before
    again = PartialFeatures(tmp_path, plan, dim=5)
    assert (again.resumed, again.done) == (True, 10)
    again.close()
    other = PartialFeatures(tmp_path, plan | other, dim=5, redo=True)
    assert (other.resumed, other.done, other.facts()) == (False, 0, [])


@pytest.mark.parametrize("name", [FEATURES_PART, FACTS_PART])
def test_a_part_shorter_than_its_cursor_starts_over(tmp_path: Path, name: str) -> None:
    part = PartialFeatures(tmp_path, PLAN, dim=5)
    fill(part, 10, 5)
    part.close()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert not PartialFeatures(tmp_path, PLAN, dim=5).resumed


def test_facts_and_features_must_agree(tmp_path: Path) -> None:
    part = PartialFeatures(tmp_path, PLAN, dim=5)
    with pytest.raises(ValueError, match="2 x 5"):
        part.append(np.zeros((1, 5), np.float32), [{"index": 0}, {"index": 1}])
