"""What is chosen without being asked: it always works, and follows the rules that it states."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.training import RECIPES
from dino_core.training.auto import (
    Choice,
    choose,
    estimated_speed,
    fit_to_time,
    image_bytes,
    image_flops,
    measured,
)

numbers = st.integers(2, 5_000_000) | st.integers(2, 300)
sides = st.integers(16, 4000)
devices = st.sampled_from(["cpu", "mps", "cuda"])
times = st.none() | st.floats(0, 1e8)
memories = st.none() | st.integers(1 << 28, 1 << 38)
speeds = st.none() | st.floats(0, 1e6)

GIB = 1 << 30


@given(numbers, sides, devices, memories, times, st.integers(1, 128), speeds)
def test_whatever_is_chosen_works(images, size, device, memory, seconds, cores, speed):
    choice = choose(
        images,
        size,
        device=device,
        memory=memory,
        seconds=seconds,
        cores=cores,
        images_per_second=speed,
    )
    recipe = choice.recipe
    training = images - recipe.held_out(images)
    steps = recipe.resolved(training).steps
    assert steps is not None and steps >= 1
    assert recipe.resolved(images)
    assert recipe.batch_size <= max(2, training / 8)
    assert 1 <= (recipe.micro_batch or 1) <= recipe.batch_size
    assert recipe.optim.warmup_epochs * training / recipe.batch_size <= max(1, steps / 4)
    assert recipe.crops.global_size <= max(32, 1.4 * size), "pixels that are not there"
    if recipe.teacher.teacher_temp > 0.04:
        assert recipe.teacher.warmup_teacher_temp_epochs >= 3, "a hot teacher at once collapses"
    assert all(reason.count("\n") == 0 and ": " in reason for reason in choice.reasons)


@given(st.lists(numbers, min_size=2, max_size=2).map(sorted), sides, devices)
def test_more_images_never_get_less(pair, size, device):
    few, many = (choose(n, size, device=device).recipe for n in pair)
    for of in (
        lambda r: r.head.out_dim,
        lambda r: r.batch_size,
        lambda r: r.teacher.momentum,
        lambda r: r.teacher.teacher_temp,
        lambda r: -r.head.batch_norm,
        lambda r: r.optim.lr * r.batch_size,
    ):
        assert of(few) <= of(many) * (1 + 0.01 * (of(many) > 0))  # rates are rounded


@given(numbers, st.lists(sides, min_size=2, max_size=2).map(sorted), devices)
def test_larger_images_get_crops_as_large_at_least(images, pair, device):
    small, large = (choose(images, size, device=device).recipe.crops for size in pair)
    assert small.global_size <= large.global_size
    assert small.local_size <= large.local_size


@given(
    numbers,
    sides,
    devices,
    st.lists(st.floats(1, 1e7), min_size=2, max_size=2).map(sorted),
    st.integers(1, 64),
)
def test_more_time_never_gets_less(images, size, device, pair, cores):
    short, long = (choose(images, size, device=device, seconds=s, cores=cores) for s in pair)
    assert image_flops(short.recipe) <= image_flops(long.recipe)
    if short.recipe.crops == long.recipe.crops:
        assert short.recipe.steps <= long.recipe.steps


@given(numbers, sides, st.floats(60, 1e6), st.floats(1, 1e5))
def test_the_time_is_kept(images, size, seconds, speed):
    recipe = choose(images, size, device="cuda", seconds=seconds, images_per_second=speed).recipe
    assert recipe.steps == 1 or recipe.steps * recipe.batch_size / speed <= seconds


def test_a_few_photos_on_a_cpu_get_the_recipe_that_is_known_to_work():
    for images in (1_700, 3_000, 20_000):
        assert choose(images, 300).recipe == RECIPES["small"]
    few = choose(400, 300).recipe
    assert (few.batch_size, few.epochs) == (32, 46)  # of 11 steps: 500 in all, at least
    as_small = dataclasses.replace(few, batch_size=64, epochs=20, optim=RECIPES["small"].optim)
    assert as_small == RECIPES["small"]


def test_imagenet_on_a_gpu_gets_the_papers():
    recipe = choose(1_281_167, 400, device="cuda", memory=80 * GIB).recipe
    vanilla, ours = RECIPES["vits16"], recipe.head
    assert recipe.crops == vanilla.crops and ours == vanilla.head
    assert (recipe.epochs, recipe.batch_size, recipe.optim.lr) == (100, 512, 0.0005)
    assert (recipe.teacher.momentum, recipe.teacher.teacher_temp) == (0.996, 0.07)
    assert recipe.teacher.warmup_teacher_temp_epochs == 30


@pytest.mark.parametrize(
    ("images", "prototypes", "on_a_cpu"),
    [
        (2, 1024, 1024),
        (20_000, 1024, 1024),
        (20_001, 2048, 2048),
        (50_001, 4096, 4096),
        (100_001, 16384, 4096),
        (200_001, 32768, 4096),
        (500_001, 65536, 4096),
    ],
)
def test_prototypes_by_number_of_images(images, prototypes, on_a_cpu):
    assert choose(images, 300, device="cuda").recipe.head.out_dim == prototypes
    assert choose(images, 300).recipe.head.out_dim == on_a_cpu


@pytest.mark.parametrize(
    ("size", "device", "seconds", "crops"),
    [
        (32, "cpu", None, (32, 16)),
        (64, "cpu", None, (64, 32)),
        (500, "cpu", None, (64, 32)),
        (500, "cpu", 1800, (48, 24)),
        (32, "cuda", None, (32, 16)),
        (64, "cuda", None, (64, 32)),
        (160, "cuda", None, (128, 64)),
        (500, "cuda", None, (224, 96)),
        (500, "cuda", 600, (128, 64)),
        (500, "cuda", 60, (64, 32)),
    ],
)
def test_crops_by_images_device_and_time(size, device, seconds, crops):
    recipe = choose(3_200, size, device=device, seconds=seconds, cores=2).recipe
    assert (recipe.crops.global_size, recipe.crops.local_size) == crops


def test_the_usual_length_by_number_of_images():
    for images, epochs in ((20_000, 300), (200_000, 200), (1_281_167, 100)):
        assert choose(images, 300, device="cuda").recipe.epochs == epochs
    steps = [choose(images, 300).recipe.steps for images in (50_000, 50_001, 5_000_000)]
    assert steps == [None, 15_625, 15_625]  # a million images at most on a CPU


def test_every_choice_has_its_reason():
    choice = choose(3_200, 480, device="cuda", memory=24 * GIB, seconds=1800)
    told = "\n".join(choice.reasons)
    assert "K = 1024: 3,200 images are few" in told
    assert "batch = 256: an eighth of 3,200 images at most" in told
    assert "24 GiB of memory" in told
    assert "in 30 min" in told
    assert "teacher momentum = 0.99" in told
    assert len(choice.reasons) <= 8


def test_little_memory_means_smaller_passes_of_the_same_batch():
    batches, passes = [], []
    for memory in (2 * GIB, 8 * GIB, 24 * GIB, 139 * GIB):
        recipe = choose(1_000_000, 400, device="cuda", memory=memory).recipe
        batches.append(recipe.batch_size)
        passes.append(recipe.micro_batch or recipe.batch_size)
    assert batches == [512] * 4
    assert passes == sorted(passes) and passes[0] < passes[1] < passes[3] == 512


def test_a_batch_is_shared_evenly():
    for processes in (1, 2, 3, 8):
        recipe = choose(100_000, 400, device="cuda", processes=processes).recipe
        assert recipe.batch_size % processes == 0
        assert 500 < recipe.batch_size <= 512


@pytest.mark.parametrize(
    ("name", "published"),
    # gigaflops of an image's step, counted with torch's FlopCounterMode on the published code
    [("vits16", 113.8), ("imagenette", 36.6)],
)
def test_the_cost_of_an_image(name, published):
    assert image_flops(RECIPES[name]) / 1e9 == pytest.approx(published, rel=0.002)
    assert 0.1e9 < image_bytes(RECIPES["vits16"]) < 0.15e9


def test_a_measured_speed_sets_the_length_of_settings_that_are_there():
    recipe = RECIPES["small"]
    choice = fit_to_time(recipe, 3_000, 600, 64.0)
    assert isinstance(choice, Choice)
    assert choice.recipe.steps == 540  # nine tenths of the time
    assert "540" in choice.reasons[0] and "10 min" in choice.reasons[0]
    assert dataclasses.replace(choice.recipe, steps=None, optim=recipe.optim) == recipe
    assert fit_to_time(recipe, 3_000, 0, 64.0).recipe.steps == 1
    assert fit_to_time(recipe, 3_000, math.inf, 64.0).recipe.steps == 800 * 44


def test_one_speed_tells_the_others():
    """On a machine where little is slow, nothing larger is chosen for that."""
    quick = choose(3_200, 500, device="cuda", seconds=60).recipe
    again = choose(3_200, 500, device="cuda", seconds=60, images_per_second=measured(quick, 7e3))
    assert again.recipe.crops == quick.crops
    fast = choose(3_200, 500, device="cuda", seconds=60, images_per_second=measured(quick, 1e6))
    assert fast.recipe.crops.global_size == 224


def test_speeds_are_of_the_right_order():
    assert 10 < estimated_speed(RECIPES["small"], "cpu", 2) < 100
    assert 200 < estimated_speed(RECIPES["vits16"], "cuda") < 2000
