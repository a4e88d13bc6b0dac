"""Search trees: the kernels against NumPy, the counters against the theory, stochastic steps against dense matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NAMES, DenseReference, make, sphere

import widefit
from widefit.gram import CurrentGrams
from widefit.kernels.trees import max_trees as trees
from widefit.kernels.trees import steps
from widefit.nn import TwoLayer
from widefit.trackers import DataTree, Minibatches, Tracking, Update, WeightTree
from widefit.training.train import Training

TREES = [WeightTree(), DataTree()]


@pytest.fixture(params=TREES, ids=lambda tracker: tracker.name)
def tracker(request):
    return request.param


def forest_of(keys: np.ndarray) -> np.ndarray:
    """A max-tree for each row of keys."""
    forest = np.full((keys.shape[0], 2 * keys.shape[1]), np.nan, keys.dtype)
    forest[:, keys.shape[1] :] = keys
    trees.rebuild_trees(forest, 0, keys.shape[0])
    return forest


def maxima(forest: np.ndarray) -> np.ndarray:
    """Inner nodes, each from its children; NaN loses."""
    size = forest.shape[1] // 2
    nodes = forest.copy()
    for p in range(size - 1, 0, -1):
        nodes[:, p] = np.fmax(nodes[:, 2 * p], nodes[:, 2 * p + 1])
    return nodes[:, 1:]


# Few values, so that ties at the threshold are common.
VALUES = st.sampled_from([-np.inf, np.inf, np.nan, -1e38, 1e38, -1.0, 0.0, -0.0, 0.5, np.nextafter(0.5, 1), 2.0])
LISTS = st.lists(VALUES, min_size=1, max_size=70)


class TestMaxTrees:
    @given(LISTS, st.sampled_from([-1.0, 0.0, 0.5, 1e38]))
    def test_query_finds_what_exceeds_the_threshold(self, values, threshold):
        keys = np.array([values])
        forest = forest_of(keys)
        np.testing.assert_array_equal(forest[:, 1:], maxima(forest))
        start, found, visited = trees.query_trees(forest, np.zeros(3, np.int32), threshold)
        expected = np.flatnonzero(keys[0] > threshold)
        assert np.array_equal(start, expected.size * np.arange(4))
        assert np.array_equal(found, np.tile(expected, 3))
        assert visited <= 3 * (1 + 2 * expected.size * np.ceil(np.log2(keys.size)))

    @given(LISTS, st.data(), st.sampled_from([0.0, 0.5]))
    def test_new_keys(self, values, data, threshold):
        """Single keys climb, many rebuild the tree: the same nodes either way, and every flip counted."""
        before = np.array([values, values[::-1]])
        size = before.shape[1]
        neurons = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))), np.int64)
        moved = np.array(data.draw(st.lists(VALUES, min_size=2 * neurons.size, max_size=2 * neurons.size)))
        moved, after = moved.reshape(2, neurons.size), before.copy()
        after[:, neurons] = moved
        expected = np.count_nonzero((after > threshold) != (before > threshold))
        for spare in (0, 4000):
            # Next to thousands of other keys a few are few.
            forest = forest_of(np.hstack([before, np.full((2, spare), -np.inf)]))
            assert trees.write_by_sample(forest, neurons, moved, threshold, 0, 2) == expected
            np.testing.assert_array_equal(forest[:, 1:], maxima(forest))
            np.testing.assert_array_equal(forest[:, size + spare :][:, :size], after)
        forest = forest_of(before)
        assert trees.write_by_neuron(forest, np.array([0, 1]), after, threshold, 0, 2) == expected
        np.testing.assert_array_equal(forest[:, 1:], maxima(forest))

    @given(st.integers(1, 9), st.integers(1, 70), st.floats(-2, 2), st.integers(0, 99))
    def test_rows_and_lists_are_the_same_pairs(self, samples, neurons, threshold, seed):
        generator = np.random.default_rng(seed)
        keys = generator.standard_normal((neurons, samples))
        some = np.flatnonzero(generator.random(samples) < 0.6).astype(np.int32)
        fires = keys[:, some] > threshold
        firing = np.flatnonzero(fires.any(1))
        start, listed, _ = trees.query_trees(forest_of(np.ascontiguousarray(keys.T)), some, threshold)
        tally = np.zeros(neurons, np.int64)
        turned = steps.turn_lists(start, listed, some, tally)
        looked_up = trees.look_up(forest_of(keys), some, threshold, 0, neurons)[:3]
        assert not tally.any()
        for rows in (turned, looked_up):
            assert np.array_equal(rows[0], firing)
            assert np.array_equal(np.diff(rows[1]), fires[firing].sum(1))
            assert np.array_equal(rows[2], some[np.nonzero(fires[firing])[1]])

    @given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 20), st.sampled_from([np.float32, np.float64]))
    def test_a_key_does_not_depend_on_what_stands_beside_it(self, rows, columns, features, dtype):
        generator = np.random.default_rng(rows + 10 * columns)
        a, b = generator.standard_normal((rows, features)), generator.standard_normal((features, columns))
        a, b = a.astype(dtype), b.astype(dtype)
        whole, turned = np.empty((rows, columns), dtype), np.empty((columns, rows), dtype)
        steps.products(a, b, whole, 0)
        steps.products(np.ascontiguousarray(b.T), np.ascontiguousarray(a.T), turned, 0)
        assert np.array_equal(whole, turned.T)
        single = np.empty_like(whole)
        for column in range(columns):
            steps.products(a, np.ascontiguousarray(b[:, column : column + 1]), single, column)
        assert np.array_equal(whole, single)
        scale = np.abs(a) @ np.abs(b)
        assert np.all(np.abs(whole - a.astype(np.float64) @ b) <= features * np.finfo(dtype).eps * scale)


def grams(run, problem, network) -> CurrentGrams:
    similarity = problem.inputs.astype(np.float64) @ problem.inputs.astype(np.float64).T
    return CurrentGrams(run, similarity, network.coefficients, held=network.out_features)


def minibatches(problem, batch: int, count: int, loss: str = "squared") -> Minibatches:
    """Batches in no order, with weights, rates that change and a step that is small on this problem."""
    generator = np.random.default_rng(batch)
    samples = problem.inputs.shape[0]
    batch = min(batch, samples)
    visits = np.concatenate([generator.permutation(samples)[:batch] for _ in range(count)])
    rates = generator.uniform(0.1, 0.3, count) / max(1.0, float(np.abs(problem.inputs).max())) ** 2
    targets = np.sign(problem.targets) if loss == "logistic" else problem.targets
    weight = generator.uniform(0.5, 2, samples)
    return Minibatches(visits, np.arange(count + 1) * batch, rates, targets, weight, loss)


def fires_of(run) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


# Pre-activations of these are 1e6 or 0: a trajectory of theirs is rounding, or nothing.
STOCHASTIC = [name for name in NAMES if name not in ("huge", "tiny", "digits")]


class TestDescend:
    @pytest.mark.parametrize("name", STOCHASTIC)
    @pytest.mark.parametrize("batch", [1, 7])
    def test_follows_the_reference(self, tracker, name, batch):
        problem = make(name, torch.float64)
        network, reference = problem.fresh(), DenseReference.of(problem)
        anchor = network.weight.detach().numpy().copy()
        run = tracker.start(network, problem.inputs, anchor=anchor, threads=2)
        work = minibatches(problem, batch, 6)
        expected = 0
        for step in range(len(work)):
            g = np.zeros_like(problem.targets)
            g[work.batch(step)] = work.g(step, reference.outputs()[work.batch(step)])
            before = reference.fires()
            reference.step(g, np.zeros(g.shape[1]))
            expected += np.count_nonzero(before != reference.fires())
        assert run.descend(work, grams(run, problem, network)) == expected
        np.testing.assert_allclose(run.outputs, reference.outputs(), rtol=1e-11, atol=1e-11)
        assert np.array_equal(fires_of(run), reference.fires())
        np.testing.assert_allclose(network.weight.detach().numpy(), reference.weight, rtol=1e-12, atol=1e-12)
        offset = reference.weight - reference.initial
        response = [reference.jacobian(k) @ offset.ravel() for k in range(problem.targets.shape[1])]
        np.testing.assert_allclose(run.displacement.response.T, response, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(run.displacement.squared_norm.sum(), (offset**2).sum(), rtol=1e-10, atol=1e-15)

    @pytest.mark.parametrize("loss", ["squared", "logistic"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    def test_is_the_default_step_by_step(self, tracker, loss, dtype):
        problem = make("digits", dtype, width=600)
        work = minibatches(problem, 5, 12, loss)
        runs, flips = [], []
        for descend in (tracker.start(problem.fresh(), problem.inputs).__class__.descend, Tracking.descend):
            network = problem.fresh()
            run = tracker.start(network, problem.inputs)
            flips.append(descend(run, work, grams(run, problem, network)))
            runs.append((run.outputs, network.weight.detach().numpy(), fires_of(run)))
            assert run.report().flips == flips[-1]
        assert flips[0] == flips[1] > 0
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=tolerance, atol=tolerance)
        assert np.array_equal(runs[0][2], runs[1][2])

    def test_the_gram_matrix_is_counted_anew(self, tracker):
        problem = make("random", torch.float64)
        network = problem.fresh()
        run = tracker.start(network, problem.inputs)
        gram = grams(run, problem, network)
        gram(0)
        assert run.descend(minibatches(problem, 9, 4), gram) > 0
        reference = DenseReference.of(problem)
        reference.weight = network.weight.detach().numpy()
        np.testing.assert_allclose(gram(0).matrix.numpy(), reference.gram(0), rtol=1e-12, atol=1e-14)


class TestChanges:
    @pytest.mark.parametrize("name", ["random", "three outputs", "plain relu", "digits"])
    def test_flips_are_listed_in_order(self, tracker, name):
        problem = make(name, torch.float64)
        network = problem.fresh()
        outputs = network.out_features
        run = tracker.start(network, problem.inputs, anchor=network.weight.detach().numpy().copy())
        gram = grams(run, problem, network)
        gram(0)
        generator = np.random.default_rng(3)
        for support in (np.arange(problem.inputs.shape[0]), np.array([4]), np.arange(3, 20, 2)):
            g = np.zeros((problem.inputs.shape[0], outputs))
            g[support] = 0.03 * np.sqrt(network.width) * generator.standard_normal((support.size, outputs))
            if outputs > 1:
                g[support[::2], 1] = 0
            shrink = np.where(np.arange(outputs) == 2, 0.3, 0.0)
            before = fires_of(run)
            trial = run.propose(Update(g, shrink), gram)
            gram.follow(trial.changes)
            run.commit(trial)
            neurons, samples = np.nonzero(fires_of(run) != before)
            assert np.array_equal(trial.changes.neurons, neurons)
            assert np.array_equal(trial.changes.samples, samples)
            assert np.array_equal(trial.changes.fires, fires_of(run)[neurons, samples])
            assert trial.flips == len(trial.changes) > 0
        again = grams(run, problem, network)(0)
        np.testing.assert_allclose(gram(0).matrix.numpy(), again.matrix.numpy(), rtol=1e-12, atol=1e-14)

    def test_neurons_that_fire_on_nothing_of_the_step_stay_as_they_are(self, tracker):
        problem = make("three outputs", torch.float64)
        network = problem.fresh()
        weight = network.weight.detach().numpy().copy()
        run = tracker.start(network, problem.inputs)
        fires, g = fires_of(run), np.zeros((problem.inputs.shape[0], 3))
        g[[3, 8], 1] = 1.0
        run.commit(run.propose(Update(g, np.zeros(3)), grams(run, problem, network)))
        first, last = network.neurons_of(1)
        expected = np.flatnonzero(fires[:, 3] | fires[:, 8])
        expected = expected[(expected >= first) & (expected < last)]
        assert np.array_equal(np.flatnonzero((network.weight.detach().numpy() != weight).any(1)), expected)
        assert run.report().keys_updated == expected.size * problem.inputs.shape[0]

    def test_shrinking_needs_an_anchor(self, tracker):
        problem = make("random", torch.float64)
        network = problem.fresh()
        run = tracker.start(network, problem.inputs)
        with pytest.raises(ValueError, match="start the run with anchor"):
            run.propose(Update(np.zeros((40, 1)), np.ones(1)), grams(run, problem, network))

    def test_weights_without_a_number_fire_on_nothing(self, tracker):
        problem = make("random", torch.float64)
        network = problem.fresh()
        network.weight.data[5] = torch.nan
        fires = fires_of(tracker.start(network, problem.inputs))
        others = np.arange(network.width) != 5
        assert not fires[5].any()
        assert np.array_equal(fires[others], DenseReference.of(problem).fires()[others])


class TestSublinear:
    """Counters of queries and updates: the pairs that fire decide, not the width."""

    def test_queries_visit_the_paths_to_what_they_find(self, tracker):
        inputs = sphere(np.random.default_rng(0).standard_normal((33, 6)))
        for width in (500, 4096, 20000):
            network = TwoLayer(6, width, threshold=2.0, dtype=torch.float64)
            run = tracker.start(network, inputs)
            size = inputs.shape[0] if tracker.name == "data-tree" else width
            query = run.fired_samples if tracker.name == "data-tree" else run.fired_neurons
            for index in (0, 7, 32):
                before = run.report().nodes_visited
                found = query(index)
                visited = run.report().nodes_visited - before
                assert 0 < visited <= 2 * (found.size + 1) * np.log2(2 * size)
                assert 2 * found.size < size or size < 40

    def test_a_step_on_one_sample_updates_the_neurons_that_fire_on_it(self, tracker):
        problem = make("digits", torch.float32)
        network = problem.fresh()
        run = tracker.start(network, problem.inputs)
        samples = problem.inputs.shape[0]
        fired = run.fired_neurons(11).size
        g = np.zeros((samples, 1))
        g[11] = 0.1
        start = run.report()
        trial = run.propose(Update(g, np.zeros(1)), grams(run, problem, network))
        run.commit(trial)
        end = run.report()
        assert not trial.rebased
        assert end.full_passes == start.full_passes == 1
        assert end.keys_updated == fired * samples < 0.1 * network.width * samples
        assert end.pairs_evaluated - start.pairs_evaluated == fired * samples
        work = Minibatches(np.array([11]), np.array([0, 1]), np.array([0.1]), problem.targets, np.ones(samples))
        fired += run.fired_neurons(11).size
        run.descend(work, grams(run, problem, network))
        assert run.report().keys_updated == fired * samples

    def test_memory_is_two_numbers_a_pair(self, tracker):
        problem = make("random", torch.float32)
        report = tracker.start(problem.fresh(), problem.inputs).report()
        keys = 8 * problem.network.width * problem.inputs.shape[0]
        assert keys <= report.bytes_held <= 1.2 * keys


def test_what_cannot_fit_is_refused(tracker):
    network = TwoLayer(1, 1 << 21, dtype=torch.float32)
    inputs = np.ones((300_000, 1), np.float32)
    with pytest.raises(MemoryError, match=r"needs 5,033,164,800,000 bytes of keys .* a width of [\d,]+ fits"):
        tracker.start(network, inputs)


@pytest.mark.parametrize("name", ["weight-tree", "data-tree"])
class TestTraining:
    def test_by_name_as_the_dense_tracker(self, name):
        problem = make("digits", torch.float64, width=800)
        losses = []
        for tracker in ("dense", name):
            arguments = {"tracker": tracker, "max_iter": 4, "tol": 0, "alpha": 1e-3}
            losses.append(widefit.train(problem.fresh(), problem.inputs, problem.targets, **arguments).losses)
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-7)

    @pytest.mark.parametrize("rule", ["gauss-newton", "gradient-descent"])
    def test_resumes_to_the_same_bits(self, name, rule):
        problem = make("random", torch.float32)

        def training(network, steps: int) -> Training:
            return Training(
                network, problem.inputs, problem.targets, rule=rule, tracker=name, alpha=0.01, tol=0, max_iter=steps
            )

        whole, part, resumed = problem.fresh(), problem.fresh(), problem.fresh()
        training(whole, 5).run()
        stopped = training(part, 2)
        stopped.run()
        training(resumed, 5).run(stopped.state())
        assert torch.equal(resumed.weight, whole.weight)
