"""The certificate tracker where it is hard: many steps without a pass, in all the ways that it has to follow one."""

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DenseReference, digits_parity, make, real, sphere

import widefit
from widefit.gram import CurrentGrams
from widefit.kernels.certificate import bounds as kernels
from widefit.kernels.products import INTEGERS
from widefit.nn import TwoLayer
from widefit.rules import SGD, GradientDescent
from widefit.trackers import Certificate, Dense, Update
from widefit.trackers.certificate import slot_layout, tracking
from widefit.trackers.certificate.bounds import OutputBounds
from widefit.trackers.certificate.geometry import Geometry, bucket_caps
from widefit.trackers.certificate.movement import movements
from widefit.trackers.certificate.passes import scan
from widefit.trackers.certificate.products import Products
from widefit.trackers.fire_pattern import Chunk
from widefit.training.train import Training


def current_grams(run, network, inputs) -> CurrentGrams:
    inputs = inputs.astype(np.float64)
    return CurrentGrams(run, inputs @ inputs.T, network.coefficients, network.out_features)


def fires(run) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


def check(run, reference: DenseReference, eps: float) -> None:
    """Patterns, outputs and displacement against dense float64 matrices."""
    z = reference.preactivations()
    slack = 50 * eps * (np.linalg.norm(reference.weight, axis=1).max() + abs(reference.threshold))
    clear = np.abs(z - reference.threshold) > slack
    assert np.array_equal(fires(run)[clear], (z > reference.threshold)[clear])
    tolerance = 3e-11 if eps < 1e-12 else 3e-6
    np.testing.assert_allclose(run.outputs, reference.outputs(), atol=tolerance)
    offset = reference.weight - reference.initial
    for output in range(run.outputs.shape[1]):
        response = reference.jacobian(output) @ offset.ravel()
        np.testing.assert_allclose(run.displacement.response[:, output], response, atol=100 * tolerance)
    np.testing.assert_allclose(run.displacement.squared_norm.sum(), np.sum(offset**2), rtol=1e-7, atol=1e-9)


def size_of_steps(network) -> float:
    """g of this size moves pre-activations by about one."""
    return float(np.sqrt(network.width))


def schedule(kind: str, steps: int) -> np.ndarray:
    if kind == "shrinking":
        return 0.3 * 0.4 ** np.arange(steps)
    if kind == "small":
        return np.full(steps, 1e-3)
    if kind == "one long step among small ones":
        return np.where(np.arange(steps) == steps // 2, 1.0, 1e-3)
    return np.where(np.arange(steps) % 3 == 0, 0.05, 1e-4)  # mixed


KINDS = ("shrinking", "small", "one long step among small ones", "mixed")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("three outputs", kind) for kind in KINDS),
        *(("plain relu", kind) for kind in KINDS),
        ("random", "small"),
        ("duplicates", "mixed"),
        ("zero rows", "one long step among small ones"),
        ("floored", "shrinking"),
    ],
)
def test_many_steps_without_a_pass(name, kind):
    problem = make(name, torch.float64)
    network, reference = problem.fresh(), DenseReference.of(problem)
    run = Certificate().start(network, problem.inputs)
    gram = current_grams(run, network, problem.inputs)
    generator = np.random.default_rng(3)
    rebased = []
    for step, size in enumerate(schedule(kind, 9)):
        g = size * size_of_steps(network) * generator.standard_normal(problem.targets.shape) / 3
        shrink = np.full(g.shape[1], [0.0, 0.1, 0.0, 1.0][step % 4] if step > 3 else 0.0)
        # What is proposed and not carried out leaves no trace.
        run.propose(Update(3 * g[::-1].copy(), shrink), gram)
        before = fires(run)
        trial = run.propose(Update(g, shrink), gram)
        gram.follow(trial.changes)
        run.commit(trial)
        reference.step(g, shrink)
        check(run, reference, 2e-16)
        after = fires(run)
        assert trial.flips == np.count_nonzero(before != after)
        assert trial.changes is not None
        changed = np.zeros_like(before)
        changed[trial.changes.neurons, trial.changes.samples] = True
        assert np.array_equal(changed, before != after)
        assert np.array_equal(after[changed], trial.changes.fires)
        for output in range(g.shape[1]):
            np.testing.assert_allclose(gram(output).matrix.numpy(), reference.gram(output), atol=1e-12)
        rebased.append(trial.rebased)
    assert rebased.count(True) < len(rebased)
    if kind == "small":
        assert rebased.count(True) <= 4
    run.finish()
    np.testing.assert_allclose(network.weight.detach().numpy(), reference.weight, atol=1e-11)


@settings(max_examples=25)
@given(
    st.integers(1, 50), st.integers(1, 4), st.integers(2, 60), st.floats(-1, 2), st.integers(1, 2),
    st.floats(-4, 0.5), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 10**6),
)  # fmt: skip
def test_any_run_follows_dense_matrices(samples, features, width, threshold, outputs, magnitude, shrink, seed):
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((samples, features))
    inputs[generator.random(samples) < 0.2] = inputs[0]
    network = TwoLayer(features, width * outputs, outputs, threshold=threshold, seed=seed, dtype=torch.float64)
    reference = DenseReference(
        network.weight.detach().numpy().copy(), network.weight.detach().numpy().copy(),
        network.readout.detach().numpy(), network.threshold, 0.0, inputs,
    )  # fmt: skip
    run = Certificate(reach=2.0, most=1.0).start(network, inputs)
    gram = current_grams(run, network, inputs)
    for step in range(6):
        g = 10.0**magnitude * size_of_steps(network) * generator.standard_normal((samples, outputs)) * 0.5**step
        update = Update(g, np.full(outputs, shrink if step % 2 else 0.0))
        trial = run.propose(update, gram)
        gram.follow(trial.changes)
        run.commit(trial)
        reference.step(update.g, update.shrink)
        z = reference.preactivations()
        slack = 1e-11 * (1 + np.abs(z).max())
        clear = np.abs(z - threshold) > slack
        assert np.array_equal(fires(run)[clear], (z > threshold)[clear])
        scale = 1 + np.abs(reference.outputs()).max()
        np.testing.assert_allclose(run.outputs, reference.outputs(), atol=1e-9 * scale)


def run_of_small_steps(seed: int) -> tuple[TwoLayer, np.ndarray, Certificate, Iterator[np.ndarray]]:
    """A network, its inputs, and steps that are much alike, now and then a longer one."""
    generator = np.random.default_rng(seed)
    samples, features, half = (int(generator.integers(low, high)) for low, high in ((4, 40), (1, 5), (4, 200)))
    inputs = sphere(generator.standard_normal((samples, features)))
    network = TwoLayer(
        features, 2 * half, threshold=float(generator.uniform(-0.5, 1.5)), seed=seed, dtype=torch.float64
    )
    tracker = Certificate(reach=float(generator.choice([0.5, 2, 30])), most=1.0, least=0.5)
    size = 10.0 ** generator.uniform(-4, -1.5) * np.sqrt(half)
    steady = generator.standard_normal((samples, 1)) * np.exp(generator.standard_normal((samples, 1)))

    def steps() -> Iterator[np.ndarray]:
        for step in range(40):
            direction = steady if seed % 2 else generator.standard_normal((samples, 1))
            yield size * direction * generator.uniform(0.8, 1.2) * (20 if step % 13 == 0 else 1)

    return network, inputs, tracker, steps()


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_small_steps_miss_no_flip(seed):
    network, inputs, tracker, steps = run_of_small_steps(seed)
    weight = network.weight.detach().numpy().copy()
    reference = DenseReference(weight, weight.copy(), network.readout.detach().numpy(), network.threshold, 0.0, inputs)
    run = tracker.start(network, inputs)
    gram = current_grams(run, network, inputs)
    for g in steps:
        update = Update(g, np.zeros(1))
        trial = run.propose(update, gram)
        gram.follow(trial.changes)
        run.commit(trial)
        reference.step(update.g, update.shrink)
        z = reference.preactivations()
        clear = np.abs(z - reference.threshold) > 1e-11 * (1 + np.abs(z).max())
        assert np.array_equal(fires(run)[clear], reference.fires()[clear])


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
@pytest.mark.parametrize("size", [1e60, np.inf, np.nan])
def test_steps_that_overflow_are_followed(scale, size):
    """Bounds are computed in float32: beyond its range there are none, and others than huge steps stay exact."""
    inputs = scale * sphere(np.random.default_rng(0).standard_normal((30, 4)))
    inputs[:15, :2] = inputs[15:, 2:] = 0
    network = TwoLayer(4, 64, threshold=0.0, seed=1, dtype=torch.float64)
    run = Certificate(reach=0.1, most=1.0).start(network, inputs, expected=np.full((30, 1), 1e-3))
    before = fires(run)
    g = np.zeros((30, 1))
    g[3] = size / scale**2
    with np.errstate(all="ignore"):
        run.commit(run.propose(Update(g, np.zeros(1)), current_grams(run, network, inputs)))
    # Sample 3 does not touch the other half of the inputs.
    assert np.array_equal(fires(run)[:, 15:], before[:, 15:]) or not np.isfinite(size)
    assert np.isfinite(run.outputs[3, 0]) == np.isfinite(size)


@pytest.mark.skipif(not INTEGERS, reason="the processor has no such instruction")
@settings(max_examples=25)
@given(
    st.integers(1, 70), st.integers(1, 20), st.sampled_from([-30, 0, 15]), st.sampled_from(["f4", "f8"]),
    st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_a_pass_in_integers_finds_what_one_in_floats_does(samples, features, exponent, dtype, certified, seed):
    """Samples of all lengths, zeros, and weights with one large feature; certificates are at most a little earlier."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((samples, features)) * 10.0 ** generator.uniform(-3, 0, (samples, 1))
    inputs[generator.random(samples) < 0.2] = 0
    weights = generator.standard_normal((130, features)) * 10.0 ** generator.uniform(-2, 0, (130, 1))
    weights[::7] = 0
    weights[::5, 0] *= 1e4
    inputs, weights = inputs.astype(dtype), (weights * 10.0**exponent).astype(dtype)
    threshold = float(generator.choice([0.0, 0.5])) * 10.0**exponent
    network = TwoLayer(features, 130, threshold=threshold, dtype=torch.float32 if dtype == "f4" else torch.float64)
    network.weight.data[:] = torch.from_numpy(weights)
    geometry = Geometry.of(network, inputs, 1)
    chosen = Products.of(inputs, weights, 1 << 40)
    radius = np.full(geometry.caps.size, 0.3 * 10.0**exponent, np.float32)
    assert chosen.rounded is not None
    bounds = OutputBounds(radius, np.zeros((radius.size, samples), np.float32), radius) if certified else None
    found = [
        scan(
            replace(geometry, products=replace(chosen, exact=one, rounded=None)), Chunk(0, 130, 0),
            network.coefficients(), [weights], bounds, opening=not certified,
        )
        for one in (chosen.exact, chosen.rounded)
    ]  # fmt: skip
    exact, rounded = found
    z = weights.astype(np.float64) @ inputs.T.astype(np.float64)
    assert np.array_equal(rounded.pattern.dense(), exact.pattern.dense())
    clear = np.abs(z - threshold) > 1e-12 * np.abs(z)
    assert np.array_equal(rounded.pattern.dense()[clear], (z > threshold)[clear])
    np.testing.assert_allclose(rounded.outputs, exact.outputs, rtol=1e-9, atol=1e-30)
    held = rounded.certificates
    owner, margin = np.repeat(np.arange(130), held.count), np.abs(z - threshold)
    assert np.all(held.due <= margin[owner, held.sample])
    near = np.zeros(z.shape, bool)
    near[owner, held.sample] = True
    assert np.all(near | (margin >= radius[0])) or not certified


@settings(max_examples=25)
@given(st.integers(1, 80), st.integers(0, 10**6))
def test_bounds_bound(samples, seed):
    """At least the sum over any set, and at most a little above the sum of the largest terms."""
    generator = np.random.default_rng(seed)
    rows = sphere(generator.standard_normal((samples, 3)))
    similarity = (rows @ rows.T).astype(np.float32)
    change = generator.standard_normal(samples) * 10.0 ** generator.uniform(-6, 3, samples)
    change[generator.random(samples) < 0.3] = 0
    caps = bucket_caps(samples)
    out = np.empty((caps.size, samples))
    kernels.bound_columns(similarity, change.astype(np.float32), caps, 0, samples, out)
    terms = change[:, None] * similarity.astype(np.float64)
    ordered = np.sort(terms, axis=0)
    for q, cap in enumerate(caps):
        largest = np.maximum(np.maximum(ordered, 0)[-cap:].sum(0), np.maximum(-ordered, 0)[:cap].sum(0))
        assert np.all(out[q] >= largest * (1 - 1e-12))
        assert np.all(out[q] <= largest * 1.05 + cap * np.abs(terms).max(0) / 250)


def test_own_movements_are_upper_bounds_and_tight():
    problem = make("digits", torch.float32)
    run = Certificate().start(problem.network, problem.inputs)
    reference = DenseReference.of(problem)
    g = np.random.default_rng(0).standard_normal((120, 1))
    reference.step(g, np.zeros(1))
    moved = np.linalg.norm(reference.weight - reference.initial, axis=1)
    for chunk in run.chunks:
        bound = movements(run.geometry, chunk, g[:, 0], 0.0)
        exact = moved[chunk.chunk.first + chunk.neurons]
        assert np.all(bound >= exact)
        assert np.all(bound <= exact * 1.001 + 1e-4)


class Patterns(widefit.callbacks.Callback):
    """Patterns after every step."""

    def __init__(self):
        self.steps = []

    def step(self, run, info):
        self.steps.append(fires(run.stepper.model._tracking))
        return False


@pytest.mark.parametrize(
    ("name", "threshold", "alpha"),
    [
        ("digits", "auto", 0.0),
        ("digits", 0.0, 1e-3),
        ("wine", "auto", 1e-3),
        ("wine", 0.0, 0.0),
        ("breast cancer", "auto", 0.0),
        ("breast cancer", 0.0, 0.0),
    ],
)
def test_training_follows_dense_float64(name, threshold, alpha):
    """Patterns of a float32 network are the same after every step, and losses within 1e-5 down to 1e-10."""
    inputs, targets = real(name)
    network = TwoLayer(inputs.shape[1], 1 << 11, threshold=threshold, seed=4)
    rounded = float(np.float32(network.threshold))
    exact = TwoLayer(inputs.shape[1], 1 << 11, threshold=rounded, seed=4, dtype=torch.float64)
    exact.weight.data.copy_(network.weight)
    kept, expected = Patterns(), Patterns()
    settings = {"tol": 1e-10, "max_iter": 12, "alpha": alpha}
    found = widefit.train(network, inputs, targets, tracker=Certificate(), callbacks=[kept], **settings)
    losses = widefit.train(
        exact, inputs.astype(np.float64), targets, tracker=Dense(), callbacks=[expected], **settings
    ).losses
    assert not all(info.rebased for info in found[1:])
    assert len(found) == len(losses)
    for info, loss in zip(found, losses, strict=True):
        assert loss < 1e-10 or info.loss == pytest.approx(loss, rel=1e-8)
    # With weights that are known exactly nothing lies within rounding of the threshold.
    for one, other in zip(kept.steps, expected.steps, strict=True):
        assert np.array_equal(one, other)
    torch.testing.assert_close(network.weight.double(), exact.weight, rtol=1e-6, atol=1e-6)


def test_a_second_run_goes_on():
    problem = make("digits", torch.float32)
    network, other = problem.fresh(), problem.fresh()
    for _ in range(2):
        widefit.train(network, problem.inputs, problem.targets, tracker="certificate", max_iter=2, tol=0)
        widefit.train(other, problem.inputs, problem.targets, tracker="dense", max_iter=2, tol=0)
    torch.testing.assert_close(network.weight, other.weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["three outputs", "plain relu"])
def test_slots_in_order_and_dispersed_come_to_the_same_bits(name, monkeypatch):
    problem, ends = make(name, torch.float64), []
    for few, large, listed in ((0.0, 0, 0), (2.0, 1 << 14, 10**6)):
        monkeypatch.setattr(slot_layout, "_FEW", few)
        monkeypatch.setattr(slot_layout, "_LARGE", large)
        monkeypatch.setattr(tracking, "_LISTED", listed)
        network, generator = problem.fresh(), np.random.default_rng(5)
        run = Certificate().start(network, problem.inputs)
        gram = current_grams(run, network, problem.inputs)
        for step, size in enumerate(schedule("mixed", 8)):
            g = size * size_of_steps(network) * generator.standard_normal(problem.targets.shape) / 3
            trial = run.propose(Update(g, np.full(g.shape[1], [0.0, 0.1][step % 2])), gram)
            assert (trial.changes is None) == (trial.flips > listed)
            gram.follow(trial.changes)
            run.commit(trial)
            assert all(chunk.places is None for chunk in run.chunks) or few > 0
        assert any(chunk.room is not None for chunk in run.chunks) == (few > 0)
        ends.append([*run.state().values(), *(gram(output).matrix.numpy() for output in range(g.shape[1]))])
    for in_order, dispersed in zip(*ends, strict=True):
        np.testing.assert_array_equal(in_order, dispersed)


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_resumes_to_the_same_bits(alpha):
    problem = make("three outputs", torch.float32)
    settings = {"tracker": "certificate", "alpha": alpha, "max_iter": 6, "tol": 0}
    whole = problem.fresh()
    history = widefit.train(whole, problem.inputs, problem.targets, **settings)
    kept = []

    class Keep(widefit.callbacks.Callback):
        def finish(self, run, history):
            tensors, document = run.state()
            kept.append(({name: tensor.clone() for name, tensor in tensors.items()}, document))

    first = settings | {"max_iter": 3, "callbacks": [Keep()]}
    widefit.train(problem.fresh(), problem.inputs, problem.targets, **first)
    resumed = problem.fresh()
    again = widefit.train(resumed, problem.inputs, problem.targets, resume=kept[0], **settings)
    assert again.losses == history.losses
    assert torch.equal(resumed.weight, whole.weight)


def test_the_network_keeps_its_weights_until_the_end():
    problem = make("random", torch.float32)
    network = problem.fresh()
    run = Certificate().start(network, problem.inputs)
    gram = current_grams(run, network, problem.inputs)
    run.commit(run.propose(Update(np.ones((40, 1)), np.zeros(1)), gram))
    assert torch.equal(network.weight, problem.network.weight)
    written = np.empty_like(network.weight.detach().numpy())
    run.write_weights(written)
    with run.materialized():
        assert np.array_equal(network.weight.detach().numpy(), written)
    assert torch.equal(network.weight, problem.network.weight)
    run.finish()
    assert np.array_equal(network.weight.detach().numpy(), written)


def test_an_anchor_elsewhere_is_refused():
    problem = make("random", torch.float32)
    with pytest.raises(ValueError, match="anchor must be the network's weights"):
        Certificate().start(problem.network, problem.inputs, anchor=problem.network.weight.detach().numpy() + 1)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_trained_regenerated_network_is_saved_and_loaded(outputs):
    inputs, targets = digits_parity(60)
    targets = np.tile(targets[:, None], (1, outputs)) * np.arange(1, outputs + 1)
    network = TwoLayer(64, 5000, outputs, seed=3, store="regenerate")
    for _ in range(2):  # the second displacement has the first beneath it
        widefit.train(network, inputs, targets, max_iter=2, tol=0)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = TwoLayer(64, 5000, outputs, seed=8, store="regenerate")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert np.array_equal(other.rows(0, 5000), network.rows(0, 5000))
    assert not np.array_equal(other.rows(0, 5000), network.initial_rows(0, 5000))


@pytest.mark.parametrize(
    ("rule", "epochs"), [(GradientDescent(), 40), (SGD(batch_size=20), 4)], ids=["gradient descent", "sgd"]
)
@pytest.mark.parametrize("threshold", ["auto", 0.0], ids=["shifted", "plain"])
def test_many_small_steps_follow_dense_float64(rule, epochs, threshold):
    """Tens of steps: the same losses, and the same pattern but for rounding."""
    inputs, targets = digits_parity(100)
    networks = [TwoLayer(64, 1 << 12, threshold=threshold, seed=4, dtype=torch.float64) for _ in range(2)]
    histories, runs = [], []
    for network, tracker in zip(networks, (Certificate(), Dense()), strict=True):
        training = Training(network, inputs, targets, rule=rule, tracker=tracker, max_iter=epochs, tol=0)
        histories.append(training.run())
        runs.append(training.model._tracking)
    np.testing.assert_allclose(histories[0].losses, histories[1].losses, rtol=1e-9)
    assert np.count_nonzero(fires(runs[0]) != fires(runs[1])) <= 2
    if rule.name == "gradient-descent" and threshold == "auto":
        assert runs[0].report().full_passes < 30
    torch.testing.assert_close(networks[0].weight, networks[1].weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_regenerated_network_trains_to_the_same_bits(outputs):
    inputs, parity = digits_parity(120)
    targets = np.stack([parity, -parity, parity * np.arange(120) / 120], axis=1)[:, :outputs]
    networks = [TwoLayer(64, 9000, outputs, seed=3, store=store) for store in ("array", "regenerate")]
    settings = {"tracker": "certificate", "alpha": 1e-3, "tol": 1e-9, "max_iter": 5}
    histories = [widefit.train(network, inputs, targets, **settings) for network in networks]
    assert histories[0].losses == histories[1].losses
    assert np.array_equal(networks[1].rows(0, 9000), networks[0].weight.detach().numpy())
    assert torch.equal(networks[1].materialize().weight, networks[0].weight)
    # And a second run goes on from there.
    again = [widefit.train(network, -inputs, targets, **{**settings, "max_iter": 2}) for network in networks]
    np.testing.assert_allclose(again[0].losses, again[1].losses, rtol=1e-5)
