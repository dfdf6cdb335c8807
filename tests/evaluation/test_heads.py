"""Many heads at once against one at a time, by hand, and against a solver of the same problem."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dino_core.evaluation.heads import Heads, cosine, logistic_regression, moments, train
from dino_core.rng import permutation


def clouds(
    images: int = 300, dim: int = 8, classes: int = 4, seed: int = 0, centers: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping normal clouds, one a class; the same centers for the same `centers`."""
    middle = np.random.default_rng(centers).normal(size=(classes, dim))
    random = np.random.default_rng(1000 + seed)
    labels = random.integers(0, classes, images)
    return (middle[labels] + random.normal(size=(images, dim))).astype(np.float32), labels


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def test_a_step_of_two_heads_by_hand() -> None:
    heads = Heads([0.1, 1.0], dim=2, classes=2)
    heads.weight_RCD.zero_()
    x, labels = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1])
    heads.step(x, labels)
    # From W = 0 both classes have 1/2; the gradient of W is [[1, -1], [-1, 1]] / 2 times x over 2
    # images: [[(3 - 1) / 4, (0 - 2) / 4], ...]; the biases' cancel.
    moved = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])
    assert torch.allclose(heads.weight_RCD, torch.stack([0.1 * moved, moved]))
    assert torch.equal(heads.bias_RC, torch.zeros(2, 2))
    before = heads.weight_RCD.clone()
    logits = x.numpy() @ before[1].numpy().T
    wrong = (softmax(logits) - np.eye(2)[[0, 1]]) / 2
    heads.step(x, labels, factor=0.5)
    expected = before[1].numpy() - 0.5 * (0.9 * -moved.numpy() + wrong.T @ x.numpy())
    np.testing.assert_allclose(heads.weight_RCD[1], expected, rtol=1e-5)
    np.testing.assert_allclose(heads.bias_RC[1], -0.5 * wrong.sum(0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_heads_at_once_are_torch_heads_one_by_one(decay: float) -> None:
    features, labels = clouds(images=100)
    rates, columns, rows = [0.003, 0.1, 2.0], slice(2, 7), np.arange(10, 95)
    heads = Heads(rates, 5, 4, columns=columns, decay=decay, seed=3)
    first = heads.weight_RCD[0].clone()
    train([heads], lambda epoch: features, rows, labels, epochs=4, batch=32, seed=9)
    for r, rate in enumerate(rates):
        alone = torch.nn.Linear(5, 4)
        with torch.no_grad():
            alone.weight.copy_(first)
            alone.bias.zero_()
        optimizer = torch.optim.SGD(alone.parameters(), rate, momentum=0.9, weight_decay=decay)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4, eta_min=0)
        for epoch in range(4):
            order = torch.as_tensor(rows[permutation(len(rows), 9, "linear order", epoch)])
            for some in order.split(32):
                x, y = torch.from_numpy(features)[some][:, columns], torch.as_tensor(labels)[some]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(alone(x), y).backward()
                optimizer.step()
            scheduler.step()
        torch.testing.assert_close(heads.weight_RCD[r], alone.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.bias_RC[r], alone.bias, rtol=1e-4, atol=1e-5)
        top1, loss = heads.scores(features, rows, labels)
        logits = alone(torch.from_numpy(features)[rows][:, columns])
        right = (logits.argmax(1).numpy() == labels[rows]).mean()
        assert top1[r] == pytest.approx(100 * right)
        twin = torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels[rows]))
        assert loss[r] == pytest.approx(twin.item(), rel=1e-4)
        ranked = heads.ranking(features, rows, head=r)
        assert torch.equal(ranked, logits.argsort(dim=1, descending=True))


def test_the_start_is_the_published_one() -> None:
    heads = Heads([1.0, 2.0], dim=500, classes=40)
    assert torch.equal(heads.weight_RCD[0], heads.weight_RCD[1])
    assert float(heads.weight_RCD.std()) == pytest.approx(0.01, rel=0.03)
    assert not heads.bias_RC.any()


def test_training_left_early_is_the_start_of_the_whole() -> None:
    features, labels = clouds(images=60)
    seen: list[Tensor] = []
    whole, part = Heads([0.5], 8, 4), Heads([0.5], 8, 4)

    def fit(heads: Heads, until: int | None) -> None:
        train(
            [heads], lambda epoch: features, np.arange(60), labels, epochs=5, batch=16, until=until,
            after=lambda epoch: seen.append(heads.weight_RCD.clone()),
        )  # fmt: skip

    fit(whole, None)
    fit(part, 3)
    assert len(seen) == 8 and torch.equal(seen[2], part.weight_RCD)
    assert not torch.equal(seen[2], seen[4])


def test_training_goes_on_from_a_state_as_if_it_had_not_stopped() -> None:
    features, labels = clouds(images=60)
    whole, before, after = (Heads([0.5, 0.1], 8, 4, seed=seed) for seed in (0, 0, 7))

    def fit(heads: Heads, first: int, until: int) -> None:
        train(
            [heads], lambda epoch: features, np.arange(60), labels, epochs=5, batch=16,
            first=first, until=until,
        )  # fmt: skip

    fit(whole, 0, 5)
    fit(before, 0, 2)
    state = before.state()
    fit(before, 2, 5)  # the state is a copy
    assert not torch.equal(after.weight_RCD, whole.weight_RCD)
    after.restore(state)
    fit(after, 2, 5)
    for heads in (before, after):
        assert torch.equal(heads.weight_RCD, whole.weight_RCD)
        assert torch.equal(heads.bias_RC, whole.bias_RC)
    without_momentum = Heads([0.5, 0.1], 8, 4)
    without_momentum.restore({n: 0 * t if "moving" in n else t for n, t in state.items()})
    fit(without_momentum, 2, 5)
    assert not torch.allclose(without_momentum.weight_RCD, whole.weight_RCD, rtol=1e-3)


def test_a_head_of_given_weights_is_that_layer() -> None:
    features, _ = clouds(images=30)
    layer = torch.nn.Linear(8, 4)
    head = Heads.of(layer.weight.detach(), layer.bias.detach())
    logits = layer(torch.from_numpy(features)).detach()
    torch.testing.assert_close(head.logits(torch.from_numpy(features))[:, 0], logits)
    weight, bias = head.linear()
    assert torch.equal(weight, layer.weight) and torch.equal(bias, layer.bias)
    head.weight_RCD.zero_()
    assert layer.weight.any(), "the layer's own"


def test_epochs_may_have_features_of_their_own() -> None:
    features, labels = clouds(images=40)
    asked: list[int] = []

    def of_epoch(epoch: int) -> np.ndarray:
        asked.append(epoch)
        return features * (epoch != 1)  # nothing to be seen in epoch 1

    heads = Heads([1.0], 8, 4, momentum=0)
    weights: list[Tensor] = []
    train(
        [heads], of_epoch, np.arange(40), labels, epochs=3, batch=40,
        after=lambda epoch: weights.append(heads.weight_RCD.clone()),
    )  # fmt: skip
    assert asked == [0, 1, 2]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_the_cosine_starts_at_the_rate_and_ends_above_zero() -> None:
    assert [cosine(e, 4) for e in range(4)] == pytest.approx(
        [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]
    )


def test_other_coordinates_are_folded_into_the_weights() -> None:
    features, labels = clouds(images=80)
    features = features * np.linspace(0.1, 5, 8, dtype=np.float32) + 30
    features[:, 3] = 7  # constant
    mean, deviation = moments(features, np.arange(50), torch.device("cpu"))
    np.testing.assert_allclose(mean, features[:50].mean(0), rtol=1e-5)
    expected = features[:50].astype(np.float64).std(0)
    expected[3] = 1
    np.testing.assert_allclose(deviation, expected, rtol=1e-4)
    heads = Heads([0.2], 6, 4, columns=slice(1, 7), coordinates=(mean, deviation))
    train([heads], lambda epoch: features, np.arange(80), labels, epochs=5, batch=16)
    weight, bias = heads.linear()
    raw = torch.from_numpy(features)[:, 1:7] @ weight.T + bias
    torch.testing.assert_close(
        raw, heads.logits(torch.from_numpy(features))[:, 0], rtol=1e-3, atol=1e-3
    )
    plain = Heads([0.2], 6, 4, columns=slice(1, 7))
    standard = ((torch.from_numpy(features) - mean) / deviation).numpy()
    train([plain], lambda epoch: standard, np.arange(80), labels, epochs=5, batch=16)
    torch.testing.assert_close(plain.weight_RCD, heads.weight_RCD, rtol=1e-4, atol=1e-5)


def test_a_head_that_left_the_numbers_is_no_use() -> None:
    features, labels = clouds(images=10)
    heads = Heads([1.0, 1.0], 8, 4)
    heads.weight_RCD[1] = float("nan")
    top1, loss = heads.scores(features, np.arange(10), labels)
    assert np.isfinite(loss[0]) and (top1[1], loss[1]) == (0, np.inf)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_solver_finds_what_scikit_learn_finds(strength: float) -> None:
    features, labels = clouds()
    weight, bias = logistic_regression(features, labels, 4, strength)
    theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(features, labels)
    ours = softmax(features @ weight.numpy().T + bias.numpy())
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=1e-4)


def test_a_class_without_images_is_never_the_solver_s_answer() -> None:
    features, labels = clouds()
    weight, bias = logistic_regression(features, labels, 5, 1.0)
    assert set((features @ weight.numpy().T + bias.numpy()).argmax(1).tolist()) <= {0, 1, 2, 3}


def test_sgd_comes_to_the_accuracy_of_logistic_regression() -> None:
    features, labels = clouds(images=1000)
    unseen, truth = clouds(images=2000, seed=1)
    coordinates = moments(features, np.arange(1000), torch.device("cpu"))
    heads = Heads([0.01, 0.1], 8, 4, coordinates=coordinates)
    train([heads], lambda epoch: features, np.arange(1000), labels, epochs=60, batch=64)
    top1, _ = heads.scores(unseen, np.arange(2000), truth)
    theirs = 100 * LogisticRegression(max_iter=5000).fit(features, labels).score(unseen, truth)
    assert 50 < theirs < 99  # neither hopeless nor trivial
    assert np.abs(top1 - theirs).max() <= 0.5
