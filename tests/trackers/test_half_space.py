"""The tree of balls against brute force, and what the half-space runs offer beyond the tracker's interface."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import DenseReference, make, sphere

import widefit
from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.trackers import Dense, HalfSpaceTree, Minibatches, Tracking, Update
from widefit.trackers.half_space.ball_tree import BallTree

KINDS = ("random", "clustered", "duplicated", "collinear", "one place")
RUNS = [HalfSpaceTree(over="data", leaf_size=4), HalfSpaceTree(over="weights", leaf_size=4)]


def cloud(kind: str, count: int, d: int, scale: float, dtype, generator: np.random.Generator) -> np.ndarray:
    points = generator.standard_normal((count, d))
    if kind == "clustered":
        points = 5 * generator.standard_normal((3, d))[generator.integers(0, 3, count)] + 0.01 * points
    elif kind == "duplicated":
        points = points[generator.integers(0, max(1, count // 8), count)]
    elif kind == "collinear":
        points = generator.standard_normal((count, 1)) * generator.standard_normal(d) + 1
    elif kind == "one place":
        points[:] = points[0]
    return (scale * points).astype(dtype)


def preactivations(points: np.ndarray, query: np.ndarray) -> np.ndarray:
    """⟨q, x⟩ summed coordinate by coordinate in the dtype of the points, as a query decides."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        z = np.zeros(points.shape[0], points.dtype)
        for c in range(points.shape[1]):
            z += query[c] * points[:, c]
    return z


def assert_exact(tree: BallTree, points: np.ndarray, queries: np.ndarray, thresholds) -> None:
    for threshold in thresholds:
        for query, found in zip(queries, tree.query(queries, threshold), strict=True):
            np.testing.assert_array_equal(found, np.flatnonzero(~(preactivations(points, query) <= threshold)))


@given(
    st.sampled_from(KINDS),
    st.integers(1, 300),
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([np.float32, np.float64]),
    st.integers(-40, 40),
    st.integers(0, 2**32 - 1),
)
def test_reports_what_brute_force_finds(kind, count, d, leaf_size, dtype, exponent, seed):
    """Answers are right to the bit: where products tie with the threshold, underflow or overflow; while points move."""
    generator = np.random.default_rng(seed)
    # ±1e40 leaves the range of float32, products of ±1e200 that of float64.
    scale = 10.0 ** (exponent if dtype == np.float32 else 5 * exponent)
    with np.errstate(over="ignore"):
        points = cloud(kind, count, d, scale, dtype, generator)
        queries = cloud("random", 4, d, generator.choice([1.0, scale]), dtype, generator)
    tree = BallTree(points, leaf_size, moving=True)
    for _ in range(3):
        tie = preactivations(points, queries[0])[generator.integers(count)]
        assert_exact(tree, points, queries, [dtype(0), tie, dtype(scale)] if tie == tie else [dtype(0), dtype(scale)])
        for size, keep in ((0.01, True), (3.0, False), (3.0, True)):
            where = generator.permutation(count)[: generator.integers(1, count + 1)].astype(np.int32)
            with np.errstate(over="ignore", invalid="ignore"):
                points[where] += (size * scale * generator.standard_normal((where.size, d))).astype(dtype)
            tree.move(where, points[where], keep=keep)
            assert_exact(tree, points, queries, [dtype(0), dtype(scale)])
    np.testing.assert_array_equal(tree.points, points)


def test_products_that_overflow_are_not_decided_by_bounds():
    """−9e38 is below any threshold, but in float32 its sum is ∞ − ∞: NaN, which fires."""
    points = np.full((16, 2), (2e19, -5e19), np.float32)
    queries = np.full((1, 2), 3e19, np.float32)
    assert np.isnan(preactivations(points, queries[0])).all()
    assert_exact(BallTree(points, 4), points, queries, [np.float32(0)])


@given(st.sampled_from(KINDS), st.integers(1, 200), st.integers(1, 5), st.integers(0, 99))
def test_every_ball_holds_its_points(kind, count, d, seed):
    generator = np.random.default_rng(seed)
    points = cloud(kind, count, d, 1.0, np.float64, generator)
    tree = BallTree(points, 3, moving=True)
    for size in (0.0, 0.02, 0.5):
        points += size * generator.standard_normal(points.shape)
        tree.move(np.arange(count, dtype=np.int32), points)
        balls, leaves = tree.tree.balls.astype(np.longdouble), tree.tree.sizes.size
        for leaf, members in enumerate(tree.tree.members):
            own = points[members[members >= 0]].astype(np.longdouble)
            node = leaves - 1 + leaf
            while node >= 0:
                distance = np.sqrt(((own - balls[node, :d]) ** 2).sum(1)).max()
                assert distance <= balls[node, d] + balls[node, d + 2]
                node = (node - 1) // 2 if node > 0 else -1


def test_points_that_scatter_get_a_new_tree():
    """Clusters dissolve: bounds alone would make every query look everywhere."""
    generator = np.random.default_rng(0)
    points = cloud("clustered", 2000, 2, 1.0, np.float64, generator)
    tree = BallTree(points, 8, moving=True)
    points = generator.standard_normal(points.shape)
    assert tree.move(np.arange(2000, dtype=np.int32), points).rebuilt
    queries = generator.standard_normal((5, 2))
    assert_exact(tree, points, queries, [np.float64(0.5)])
    assert tree.report(queries, np.float64(0.5))[2:] == BallTree(points, 8).report(queries, np.float64(0.5))[2:]


def test_points_that_were_not_finite_for_a_while_leave_no_trace():
    """A step that overflows is taken back; queries cost what they did."""
    points = np.random.default_rng(0).standard_normal((2000, 2))
    tree, where = BallTree(points, 8, moving=True), np.arange(2000, dtype=np.int32)
    queries = points[:5]
    for bad in (np.nan, np.inf):
        tree.move(where[::7], np.full((286, 2), bad))
        assert_exact(tree, np.where(where[:, None] % 7 == 0, bad, points), queries, [np.float64(0.5)])
        tree.move(where[::7], points[::7], keep=False)
        tree.move(where, points)
        assert_exact(tree, points, queries, [np.float64(0.5)])
        assert tree.report(queries, np.float64(0.5))[2:] == BallTree(points, 8).report(queries, np.float64(0.5))[2:]


def test_an_order_made_against_the_medians_is_cut_in_time():
    """Sorted, reversed, saw-toothed and constant coordinates, long enough for a quadratic selection to show."""
    count = 1 << 16
    ramp = np.arange(count, dtype=np.float64)
    for column in (ramp, ramp[::-1], np.abs(ramp - count / 2), ramp % 7, np.zeros(count)):
        tree = BallTree(np.ascontiguousarray(column[:, None]), 16)
        expected = np.flatnonzero(column > 3)
        np.testing.assert_array_equal(tree.query(np.ones((1, 1)), np.float64(3))[0], expected)


def test_work_beyond_the_answer_grows_slower_than_the_width():
    """d = 2: a half-space cuts about √(m / leaf size) leaves; 64 times the neurons, far less than 64 times the work."""
    generator = np.random.default_rng(1)
    samples = sphere(generator.standard_normal((50, 2))).astype(np.float32)
    beyond = []
    for width in (1 << 10, 1 << 16):
        # The same threshold for both: the same part of the neurons answers.
        run = HalfSpaceTree(over="weights").start(TwoLayer(2, width, threshold=1.5, seed=3), samples[:1])
        before = run.report()
        answers = sum(neurons.size for neurons in run.query(samples))
        after = run.report()
        assert answers == pytest.approx(0.0668 * width * 50, rel=0.2)
        beyond.append(after.nodes_visited + after.pairs_evaluated - before.nodes_visited - before.pairs_evaluated)
    assert beyond[1] < 16 * beyond[0]
    assert beyond[1] < 0.1 * (1 << 16) * 50


def follow(run: Tracking, problem, network: TwoLayer, reference: DenseReference) -> CurrentGrams:
    """Take three steps with the run and the reference."""
    generator, outputs = np.random.default_rng(8), network.out_features
    similarity = problem.inputs.astype(np.float64) @ problem.inputs.astype(np.float64).T
    grams = CurrentGrams(run, similarity, network.coefficients, held=outputs)
    for _ in range(3):
        update = Update(generator.standard_normal((problem.inputs.shape[0], outputs)), np.zeros(outputs))
        run.commit(run.propose(update, grams))
        reference.step(update.g, update.shrink)
    return grams


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["random", "three outputs", "plain relu", "floored", "one feature"])
def test_unseen_inputs(name, dtype):
    problem = make(name, dtype)
    network, reference = problem.fresh(), DenseReference.of(problem)
    run = HalfSpaceTree(over="weights", leaf_size=8).start(network, problem.inputs, threads=2)
    generator = np.random.default_rng(4)
    unseen = sphere(generator.standard_normal((70, problem.inputs.shape[1]))).astype(problem.inputs.dtype)
    for _ in range(2):
        reference.inputs = unseen.astype(np.float64)
        weight = network.weight.detach().numpy()
        for x, neurons in zip(unseen, run.query(unseen), strict=True):
            expected = np.flatnonzero(~(preactivations(weight, x) <= weight.dtype.type(network.threshold)))
            np.testing.assert_array_equal(neurons, expected)
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        outputs = reference.outputs()
        size = max(1.0, float(np.abs(outputs).max()))
        np.testing.assert_allclose(run.evaluate(unseen), outputs, rtol=tolerance, atol=tolerance * size)
        reference.inputs = problem.inputs.astype(np.float64)
        follow(run, problem, network, reference)


def minibatches(problem, count: int, loss: str = "squared") -> Minibatches:
    samples = problem.inputs.shape[0]
    generator = np.random.default_rng(6)
    size = min(5, samples)
    targets = np.sign(problem.targets) if loss == "logistic" else problem.targets
    return Minibatches(
        samples=np.concatenate([np.sort(generator.permutation(samples)[:size]) for _ in range(count)]),
        edges=size * np.arange(count + 1),
        rates=np.full(count, 0.5),
        targets=targets,
        sample_weight=generator.uniform(0.5, 2, samples),
        loss=loss,
    )


@pytest.mark.parametrize("tracker", RUNS, ids=lambda tracker: tracker.over)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["random", "three outputs", "more samples than words", "duplicates", "digits"])
def test_stochastic_steps_follow_the_plain_loop(tracker, name, dtype):
    problem = make(name, dtype)
    steps = minibatches(problem, 20, "logistic" if name == "random" else "squared")
    networks = [problem.fresh(), problem.fresh()]
    anchors = [network.weight.detach().numpy().copy() for network in networks]
    plain = Dense().start(networks[0], problem.inputs, anchor=anchors[0])
    run = tracker.start(networks[1], problem.inputs, anchor=anchors[1])
    similarity = problem.inputs.astype(np.float64) @ problem.inputs.astype(np.float64).T
    plain_grams, grams = (
        CurrentGrams(each, similarity, network.coefficients, held=3)
        for each, network in zip((plain, run), networks, strict=True)
    )
    held = grams(0)
    for _ in range(2):
        before = np.concatenate([pattern.dense() for pattern in run.patterns()])
        Tracking.descend(plain, steps, plain_grams)
        flips = run.descend(steps, grams)
        after = np.concatenate([pattern.dense() for pattern in run.patterns()])
        assert flips == np.count_nonzero(before != after)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for found, expected in (
        (run.outputs, plain.outputs),
        (run.displacement.response, plain.displacement.response),
        (networks[1].weight.detach().numpy(), networks[0].weight.detach().numpy()),
    ):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert grams(0) is held
    fresh = CurrentGrams(run, similarity, networks[1].coefficients, held=3)
    torch.testing.assert_close(held.matrix, fresh(0).matrix)
    assert networks[1].weight.detach().ne(problem.network.weight).any()


@pytest.mark.parametrize("tracker", RUNS, ids=lambda tracker: tracker.over)
def test_a_run_from_the_same_weights_goes_on_to_the_same_bits(tracker):
    problem = make("three outputs", torch.float32)
    network = problem.fresh()
    run = tracker.start(network, problem.inputs)
    grams = follow(run, problem, network, DenseReference.of(problem))
    run.descend(minibatches(problem, 10), grams)
    copy = problem.fresh()
    copy.weight.data.copy_(network.weight)
    again = tracker.start(copy, problem.inputs)
    assert np.array_equal(run.outputs, again.outputs)
    for each, own in ((run, network), (again, copy)):
        grams = CurrentGrams(each, problem.inputs @ problem.inputs.T.astype(np.float64), own.coefficients, held=1)
        each.descend(minibatches(problem, 10), grams)
        follow(each, problem, own, DenseReference.of(problem))
    assert torch.equal(network.weight, copy.weight)
    assert np.array_equal(run.outputs, again.outputs)


def test_only_neurons_that_moved_are_looked_at():
    """g on one sample: over the data, a query for each neuron that fires on it; none when g is 0."""
    problem = make("plain relu", torch.float64)
    network = problem.fresh()
    run = HalfSpaceTree(over="data", leaf_size=64).start(network, problem.inputs)
    grams = CurrentGrams(run, problem.inputs @ problem.inputs.T, network.coefficients, held=1)
    before = run.report().nodes_visited
    assert before == network.width
    run.propose(Update(np.zeros((40, 1)), np.zeros(1)), grams)
    assert run.report().nodes_visited == before
    g = np.zeros((40, 1))
    g[7] = 1
    run.propose(Update(g, np.zeros(1)), grams)
    # One leaf holds all 40 samples: one node a query.
    assert run.report().nodes_visited == before + run.fired_neurons(7).size


def test_a_stochastic_step_writes_only_neurons_that_fire():
    problem = make("digits", torch.float32)
    network = problem.fresh()
    run = HalfSpaceTree(over="weights").start(network, problem.inputs)
    steps = minibatches(problem, 1)
    fired = np.unique(np.concatenate(run.query(problem.inputs[steps.batch(0)])))
    before = network.weight.detach().clone()
    run.descend(steps, CurrentGrams(run, np.eye(120), network.coefficients, held=1))
    moved = torch.any(network.weight != before, dim=1).nonzero()[:, 0].numpy()
    assert np.isin(moved, fired).all()
    assert moved.size > 0


@pytest.mark.parametrize("over", ["data", "weights"])
def test_training_follows_dense(over):
    problem = make("one feature", torch.float64)
    losses = [
        widefit.train(problem.fresh(), problem.inputs, problem.targets, tracker=tracker, max_iter=4, tol=0).losses
        for tracker in (Dense(), HalfSpaceTree(over=over))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-7)


def test_it_has_a_name():
    problem = make("random", torch.float32)
    history = widefit.train(problem.fresh(), problem.inputs, problem.targets, tracker="half-space-tree", max_iter=2)
    assert history.losses[-1] < history.losses[0]


@pytest.mark.parametrize(("bad", "message"), [({"over": "neurons"}, "over must be"), ({"leaf_size": 0}, "leaf_size")])
def test_bad_settings_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        HalfSpaceTree(**bad)


@pytest.mark.parametrize("ask", ["query", "evaluate"])
def test_bad_inputs_are_refused(ask):
    problem = make("random", torch.float32)
    run = HalfSpaceTree(over="weights").start(problem.fresh(), problem.inputs)
    with pytest.raises(ValueError, match=r"x must have shape \(q, 5\)"):
        getattr(run, ask)(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"x contains NaN or infinity.*row 2"):
        getattr(run, ask)(np.where(np.arange(20).reshape(4, 5) == 11, np.nan, 1.0))
