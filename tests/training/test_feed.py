"""The feeds: the same views from files, memory, and out of pixels that lie on the device."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dino_core.augment import PhotometricBatch, crop_views, plan_views
from dino_core.data import Source, open_source, safe_image
from dino_core.data.store import fill
from dino_core.errors import UserError
from dino_core.training import FeedConfig, Recipe, train
from dino_core.training import resident as resident_module
from dino_core.training.feed import Batch, feed, resident_feed, shrink_of
from dino_core.training.prefetch import prepared
from dino_core.training.resident import Feed, decided

CPU = torch.device("cpu")
TOLERANCE = 2 / 255


@pytest.fixture(scope="module")
def source(pictures) -> Source:
    return open_source(pictures)


@pytest.fixture
def images(source) -> np.ndarray:
    return np.arange(3, len(source))


def same(ours: Batch, theirs: Batch) -> bool:
    tensors = [
        (*a.crops, *(t for c in a.photometrics for t in (c.blends, c.rows, c.values)))
        for a in (ours, theirs)
    ]
    return np.array_equal(ours.indices, theirs.indices) and all(
        torch.equal(a, b) for a, b in zip(*tensors, strict=True)
    )


def unjittered(recipe: Recipe) -> Recipe:
    """Views that are nothing but crops, so that a difference is one of crops."""
    plain = {"jitter": 0, "grayscale": 0, "blur": (0, 0, 0), "solarize": (0, 0, 0)}
    return replace(recipe, crops=replace(recipe.crops, **plain))


def test_a_batch_holds_the_views_planned_one_by_one(source, images, tiny):
    """The plain twin: each image decoded, planned, cropped alone, view after view."""
    recipe = replace(tiny, batch_size=20)  # more than are planned together
    (batch,) = feed(source, images, recipe, [1], workers=0, pin=False)
    epoch = 1 // recipe.steps_per_epoch(len(images))
    size = source.image(0).shape[0]
    plans = [
        plan_views(recipe.crops, 0, epoch, i, height=size, width=size)
        for i in batch.indices.tolist()
    ]
    for group, views in enumerate((range(2), range(2, 4))):
        planned = [of_image[view] for view in views for of_image in plans]
        crops = [
            crop_views(source.image(i), [of_image[view]])[0]
            for view in views
            for i, of_image in zip(batch.indices.tolist(), plans, strict=True)
        ]
        assert torch.equal(batch.crops[group], torch.stack(crops))
        twin = PhotometricBatch.collate(planned)
        ours = batch.photometrics[group]
        assert ours.counts == twin.counts and torch.equal(ours.blends, twin.blends)


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_gives_the_bytes_that_files_give(source, images, tiny, workers):
    store = fill(source, images)
    streamed = feed(source, images, tiny, range(3), 0, pin=False)
    kept = feed(source, images, tiny, range(3), workers, pin=False, store=store)
    batches = list(zip(streamed, kept, strict=True))
    assert len(batches) == 3 and all(same(a, b) for a, b in batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stored_size", [0, 37])
def test_crops_on_the_device_are_those_of_the_workers(source, images, tiny, workers, stored_size):
    recipe = replace(unjittered(tiny), feed=FeedConfig(stored_size=stored_size))
    store = fill(source, images, stored_size)
    assert store.heights.max() == (stored_size or 48)
    streamed = feed(source, images, recipe, range(3), 0, pin=False)
    resident = resident_feed(store, images, recipe, range(3), workers, pin=False)
    info = replace(recipe.backbone.info(), mean=(0, 0, 0), std=(1, 1, 1))
    for ours, theirs in zip(resident, streamed, strict=True):
        assert np.array_equal(ours.indices, theirs.indices)
        views = zip(ours.views(info, CPU), theirs.views(info, CPU), strict=True)
        for ours_views, their_views in views:
            assert (ours_views - their_views).abs().max() <= TOLERANCE + 1e-6
            assert ours_views.std() > 0.05


def test_colors_are_planned_alike(source, images, tiny):
    store = fill(source, images)
    streamed = feed(source, images, tiny, range(2), 0, pin=False)
    resident = resident_feed(store, images, tiny, range(2), 0, pin=False)
    for ours, theirs in zip(resident, streamed, strict=True):
        for a, b in zip(ours.photometrics, theirs.photometrics, strict=True):
            assert a.counts == b.counts and torch.equal(a.blends, b.blends)
            assert torch.equal(a.rows, b.rows) and torch.equal(a.values, b.values)


def test_a_bad_image_is_replaced_alike_and_told_once(pictures, tiny, tmp_path):
    for path in sorted(pictures.rglob("*.png"))[:12]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = sorted(tmp_path.iterdir())[3]
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    source = open_source(tmp_path)
    bad = source.ids[:].index(broken.name)
    images = np.arange(len(source))
    recipe = replace(tiny, feed=FeedConfig(resident="always"))
    batches = list(Feed(source, images, recipe, CPU, 0).batches(range(3)))
    streamed = list(feed(source, images, recipe, range(3), 0, pin=False))
    assert all(same(a, b) for a, b in zip(batches, streamed, strict=True))
    assert [q.id for batch in batches for q in batch.quarantined] == [broken.name]
    kept = fill(source, images).image(bad)
    assert np.array_equal(kept, safe_image(source, bad)[0])


def test_images_are_loaded_once_and_progress_is_told(source, images, tiny, monkeypatch):
    monkeypatch.setattr(resident_module, "SAY_EVERY", -1.0)
    said: list[str] = []
    recipe = replace(tiny, feed=FeedConfig(resident="always"))
    ours = Feed(source, images, recipe, CPU, 0, said.append)
    first = list(ours.batches(range(2)))
    count = len(said)
    assert count == len(images) - 1 and said[0].endswith(f"1 of {len(images)}")
    assert all(same(a, b) for a, b in zip(first, ours.batches(range(2)), strict=True))
    assert len(said) == count


def test_the_cache_gives_the_bytes_of_reduced_files(source, images, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_CACHE", str(tmp_path))
    said: list[str] = []
    reduced = replace(tiny, feed=FeedConfig(stored_size=37))
    kept = replace(tiny, feed=FeedConfig(stored_size=37, cache=True))
    streamed = list(Feed(source, images, reduced, CPU, 0).batches(range(2)))
    for workers in (0, 1):
        batches = Feed(source, images, kept, CPU, workers, said.append).batches(range(2))
        assert all(same(a, b) for a, b in zip(batches, streamed, strict=True))
    assert len(said) == 1 and str(tmp_path) in said[0]


def test_settings_of_the_feed_that_cannot_work_are_refused(tiny):
    for settings, sentence in [
        (FeedConfig(stored_size=20), "--stored-size 20 is smaller than the global crops of 32 px"),
        (FeedConfig(stored_size=-1), "--stored-size -1: must be 0 or more"),
        (FeedConfig(cache=True), "say how large, e.g. --stored-size 37"),
    ]:
        with pytest.raises(UserError, match=sentence):
            replace(tiny, feed=settings).resolved(64)
    large = replace(tiny.crops, local_size=40)
    with pytest.raises(UserError, match="--stored-size 36 is smaller than the local crops of 40"):
        replace(tiny, crops=large, feed=FeedConfig(stored_size=36)).resolved(64)
    none = replace(large, local_count=0)
    replace(tiny, crops=none, feed=FeedConfig(stored_size=36)).resolved(64)


def test_a_cpu_keeps_images_in_memory_only_when_asked(source, images, tiny):
    def choice(wish: str) -> str:
        recipe = replace(tiny, feed=FeedConfig(resident=wish))
        return decided(recipe, source, images, CPU).feed.resident

    assert [choice(w) for w in ("auto", "never", "always")] == ["never", "never", "always"]


def test_a_gpu_keeps_them_where_they_fit(source, images, tiny, monkeypatch):
    gpu, needed = torch.device("cuda"), 48 * 48 * 3 * len(images)

    def choice(wish: str, room: float) -> str:
        monkeypatch.setattr(resident_module, "_room", lambda device: int(room * needed))
        recipe = replace(tiny, feed=FeedConfig(resident=wish))
        return decided(recipe, source, images, gpu).feed.resident

    assert choice("auto", 1.2) == "always" and choice("auto", 0.9) == "never"
    assert choice("always", 1.2) == "always" and choice("never", 9) == "never"
    with pytest.raises(UserError, match="GB of cuda may hold images: use --resident auto"):
        choice("always", 0.9)


def test_a_run_out_of_memory_ends_as_one_out_of_files_and_says_so(
    pictures, tiny, tmp_path, assert_same
):
    from dino_core.runs import Run

    runs = {}
    for name, settings in [("files", FeedConfig()), ("memory", FeedConfig(resident="always"))]:
        recipe = replace(tiny, feed=settings, steps=6)
        runs[name] = train(recipe, open_source(pictures), Run(tmp_path / name))
    assert_same(runs["files"], runs["memory"])
    assert runs["files"].recipe()["feed"]["resident"] == "never"
    assert runs["memory"].recipe()["feed"]["resident"] == "always"


def test_a_run_from_before_there_was_a_choice_goes_on_from_files(tiny):
    saved = tiny.to_json()
    del saved["feed"]
    assert Recipe.from_json(saved).feed == FeedConfig(resident="never")


def test_prepared_views_are_the_batches_own_and_it_closes_them(source, images, tiny):
    info, closed = tiny.backbone.info(), []

    def batches() -> Iterator[Batch | UserError]:
        try:
            yield from feed(source, images, tiny, range(2), 0, pin=False)
            yield UserError("no more")
        finally:
            closed.append(True)

    plain = feed(source, images, tiny, range(2), 0, pin=False)
    with closing(prepared(batches(), info, CPU)) as made:
        for batch in plain:
            ours = next(made).views
            theirs = batch.views(info, CPU)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert isinstance(next(made), UserError) and not closed
    assert closed


@pytest.mark.gpu
def test_a_gpu_prepares_the_same_views_ahead(source, images, tiny):
    gpu, recipe = torch.device("cuda"), unjittered(tiny)
    info = recipe.backbone.info()
    store = fill(source, images, device=gpu)
    steps = range(5)
    plain = [b.views(info, CPU) for b in feed(source, images, recipe, steps, 0, pin=False)]
    for batches in (
        feed(source, images, recipe, steps, 0, pin=True),
        resident_feed(store, images, recipe, steps, 0, pin=True),
    ):
        for made, expected in zip(prepared(batches, info, gpu), plain, strict=True):
            for ours, theirs in zip(made.views, expected, strict=True):
                assert ours.device.type == "cuda"
                limit = TOLERANCE / min(info.std) + 1e-4
                assert (ours.cpu() - theirs).abs().max() <= limit


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Source:
    """Eight JPEGs of 400 x 300 px, so large that crops of 32 and 16 px need an eighth or less."""
    folder = tmp_path_factory.mktemp("photographs")
    scenes = open_source("scenes:8")
    for i in range(8):
        picture = Image.fromarray(scenes.image(i)).resize((400, 300), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.jpg", quality=95)
    return open_source(folder)


@pytest.mark.parametrize("stored_size", [0, 60])
def test_drafts_are_close_and_never_smaller_than_crops_need(photographs, tiny, stored_size):
    """Boxes are rounded to other pixels, so that edges move a little."""
    images = np.arange(8)
    whole = replace(unjittered(tiny), feed=FeedConfig(stored_size=stored_size))
    draft = replace(whole, feed=replace(whole.feed, draft=True))
    shrink = shrink_of(draft)
    assert shrink_of(whole) is None and shrink(300, 400) == 4
    (ours,) = feed(photographs, images, draft, [0], 0, pin=False)
    (theirs,) = feed(photographs, images, whole, [0], 0, pin=False)
    for a, b in zip(ours.crops, theirs.crops, strict=True):
        difference = (a.int() - b.int()).abs().float()
        assert 0 < difference.mean() < 6
    loaded = Feed(
        photographs, images, replace(draft, feed=replace(draft.feed, resident="always")), CPU, 0
    )
    (kept,) = loaded.batches([0])
    assert same(kept, ours)
