"""Training with H applied from fire lists: the run that n × n arrays give, whatever follows the neurons."""

import os
import signal
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

import widefit
from widefit.callbacks import Callback
from widefit.estimators import base, parameters
from widefit.estimators.parameters import affordable_width
from widefit.files import Checkpoint
from widefit.files.checkpoint import read_checkpoint
from widefit.gram import FireListGram, Samples
from widefit.nn import TwoLayer
from widefit.plan import two_layer
from widefit.plan.two_layer import plan_two_layer
from widefit.solvers import NystromCG, nystrom_cg
from widefit.trackers import Certificate, Trial, Update
from widefit.trackers.base import Grams
from widefit.trackers.certificate import geometry
from widefit.trackers.certificate.tracking import CertificateTracking
from widefit.trackers.cost import Steps, Workload
from widefit.training.train import Training
from widefit.tuning import held_out, tune

EXACT = NystromCG(tolerance=1e-11)
MANY = Workload(
    samples=60_000, features=785, width=2**14, outputs=10, firing=0.024, itemsize=4, anchored=True, readout_scale=100.0
)


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """H is applied however few the samples, and no K is held."""
    monkeypatch.setattr(two_layer, "_forms", lambda work, solver: [("fire lists", "this test")])
    monkeypatch.setattr(geometry, "LARGEST_SIMILARITY", 0)


def problem(outputs: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((90, 5))
    x[7], x[11] = x[3], 0.0
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return x, np.stack([np.sin((c + 2) * x[:, c]) for c in range(outputs)], axis=1)


def network(**settings) -> TwoLayer:
    return TwoLayer(5, 600, 2, threshold=1.0, readout_scale=3.0, seed=1, dtype=torch.float64, **settings)


@pytest.mark.parametrize("alpha", [0.0, 0.05])
@pytest.mark.parametrize("tracker", ["dense", "certificate", "verlet-list"])
def test_the_run_of_arrays(tracker: str, alpha: float, lists, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    weight = np.linspace(0.5, 2, len(x))

    def run() -> tuple[widefit.History, np.ndarray, Training]:
        own = network()
        training = Training(
            own, x, y, tracker=tracker, solver=EXACT, alpha=alpha, max_iter=4, tol=0.0, sample_weight=weight
        )
        history = training.run()
        return history, own.weight.detach().numpy(), training

    found, weights, training = run()
    assert not training.model.plan.arrays
    assert ("Gram matrix", "fire lists", "this test") in training.plan.rows()
    monkeypatch.setattr(two_layer, "_forms", lambda work, solver: [("n × n array", "")])
    expected, theirs, training = run()
    assert training.model.plan.arrays
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(weights, theirs, atol=1e-6)


@pytest.mark.parametrize("rule", ["gradient-descent", widefit.rules.GaussNewton(loss="logistic")], ids=str)
def test_other_rules_and_losses(rule, lists, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    settings = {"rule": rule, "alpha": 0.1, "max_iter": 3, "tol": 0.0, "solver": EXACT}
    found = widefit.train(network(), x, np.where(y < 0, -1.0, 1.0), **settings)
    monkeypatch.setattr(two_layer, "_forms", lambda work, solver: [("n × n array", "")])
    expected = widefit.train(network(), x, np.where(y < 0, -1.0, 1.0), **settings)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)


@pytest.mark.parametrize("tracker", ["dense", "certificate"])
def test_resumes_to_the_same_bits(tracker: str, lists, tmp_path) -> None:
    x, y = problem()
    settings = {"tracker": tracker, "alpha": 0.02, "tol": 0.0}
    whole = network()
    Training(whole, x, y, max_iter=5, **settings).run()
    kept = Checkpoint(tmp_path / "half", every_seconds=0)
    Training(network(), x, y, max_iter=2, callbacks=[kept], **settings).run()
    resumed = network()
    Training(resumed, x, y, max_iter=5, **settings).run(read_checkpoint(tmp_path / "half"))
    assert torch.equal(resumed.weight, whole.weight)


def test_threads_decide_nothing_and_solves_are_reported(lists) -> None:
    x, y = problem()
    histories = [widefit.train(network(), x, y, alpha=0.02, threads=threads, max_iter=4) for threads in (1, 3)]
    assert histories[0].losses == histories[1].losses
    steps = histories[0][1:]
    assert len(steps) >= 1
    assert all(step.solver == "nystrom-cg" and 0 <= step.residual_norm <= 0.0101 for step in steps)


def test_weights_that_are_not_stored(lists) -> None:
    x, y = problem()
    own = network(store="regenerate")
    stored = network()
    losses = [widefit.train(each, x, y, alpha=0.02, tracker="certificate", max_iter=3).losses for each in (own, stored)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    inputs = torch.from_numpy(x)
    torch.testing.assert_close(own(inputs), stored(inputs), rtol=1e-8, atol=1e-8)


def test_sums_over_very_many_samples_are_taken_in_float64(lists, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    seen: list[np.dtype] = []
    of = Samples.of
    monkeypatch.setattr(Samples, "of", lambda inputs, summed: seen.append(summed) or of(inputs, summed))
    for many in (len(x) + 1, len(x)):
        monkeypatch.setattr(two_layer, "_MANY_SUMMED", many)
        single = TwoLayer(5, 60, 2, threshold=1.0, seed=1)
        widefit.train(single, x, y, alpha=0.02, max_iter=1)
    assert seen == [np.float32, np.float64]


def test_each_output_has_a_preconditioner_of_its_own(lists, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    served: list[FireListGram] = []
    factor = nystrom_cg.pivoted_cholesky
    monkeypatch.setattr(
        nystrom_cg, "pivoted_cholesky", lambda operator, *others: served.append(operator) or factor(operator, *others)
    )
    widefit.train(network(), x, y, alpha=0.02, max_iter=1, tol=0.0)
    assert len({id(operator) for operator in served}) == 2


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_trial_takes_the_image_that_its_solve_has_found(loss: str, lists, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    applied: list[int] = []
    within: list[int] = []
    product, propose = FireListGram.matvec, CertificateTracking.propose

    def proposed(self: CertificateTracking, update: Update, gram: Grams) -> Trial:
        before = len(applied)
        trial = propose(self, update, gram)
        within.append(len(applied) - before)
        # The image is that of a product.
        again = propose(self, replace(update, image=None), gram)
        np.testing.assert_allclose(trial.outputs, again.outputs, rtol=1e-10, atol=1e-10)
        return trial

    monkeypatch.setattr(FireListGram, "matvec", lambda self, vector: applied.append(1) or product(self, vector))
    monkeypatch.setattr(CertificateTracking, "propose", proposed)
    settings = {"alpha": 0.02, "sample_weight": np.linspace(0.5, 2, len(x)), "max_iter": 2, "loss": loss}
    widefit.train(network(), x, np.where(y < 0, -1.0, 1.0), tracker="certificate", **settings)
    assert len(within) >= 2
    assert not any(within)


@pytest.mark.parametrize("tracker", ["dense", "certificate", "verlet-list"])
@pytest.mark.parametrize("product", [1, 12])
def test_a_signal_gives_up_the_step_in_progress(
    tracker: str, product: int, lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem()
    settings = {"tracker": tracker, "alpha": 0.02, "tol": 0.0, "solver": NystromCG(tolerance=1e-8, rank=4)}
    finished = network()
    expected = widefit.train(finished, x, y, max_iter=1, **settings)
    asked = []
    apply = FireListGram.matvec

    def interrupted(self: FireListGram, vector: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        if len(run.history) == 2 and len(asked) >= product + before[0]:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(FireListGram, "matvec", apply)
        return apply(self, vector)

    before = [0]
    own = network()
    run = Training(own, x, y, max_iter=5, callbacks=[_Count(asked, before)], **settings)
    monkeypatch.setattr(FireListGram, "matvec", interrupted)
    history = run.run()
    assert history.stop_reason == "interrupted"
    assert history.losses == expected.losses
    assert torch.equal(own.weight, finished.weight)


class _Count(Callback):
    """Note the products before the second step."""

    def __init__(self, asked: list[int], before: list[int]):
        self._asked, self._before = asked, before

    def step(self, run, info) -> None:
        self._before[0] = len(self._asked)


def test_resuming_takes_the_same_solver_and_form(lists, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    x, y = problem()
    kept = Checkpoint(tmp_path / "half", every_seconds=0)
    settings = {"alpha": 0.02, "tol": 0.0}
    Training(network(), x, y, max_iter=1, solver=EXACT, callbacks=[kept], **settings).run()
    with pytest.raises(ValueError, match=r"resume: the checkpoint was made with NystromCG.*fire lists"):
        Training(network(), x, y, max_iter=2, solver="cg", **settings).run(read_checkpoint(tmp_path / "half"))
    monkeypatch.setattr(two_layer, "_forms", lambda work, solver: [("n × n array", "")])
    with pytest.raises(ValueError, match=r"and this run takes NystromCG.*n × n array"):
        Training(network(), x, y, max_iter=2, solver=EXACT, **settings).run(read_checkpoint(tmp_path / "half"))


class TestPlan:
    def test_many_samples_take_fire_lists_and_say_so(self) -> None:
        plan, _, solver = plan_two_layer(MANY, "auto", "auto", 2, 8 * 10**9)
        assert not plan.arrays
        assert plan.bytes_needed <= 8 * 10**9
        assert isinstance(solver, NystromCG)
        (row,) = [row for row in plan.rows() if row[0] == "Gram matrix"]
        assert row[1] == "fire lists"
        assert "against" in row[2]
        assert "29 GB" in row[2]

    def test_the_columns_of_the_solver_that_is_asked_for_are_counted(self) -> None:
        few, many = (
            plan_two_layer(MANY, "certificate", NystromCG(rank=rank), 2, 10**11)[0].bytes_needed for rank in (100, 4000)
        )
        assert many - few > 4 * MANY.samples * 3900
        by_name = plan_two_layer(MANY, "certificate", "nystrom-cg", 2, 10**11)[0].bytes_needed
        assert by_name == plan_two_layer(MANY, "certificate", NystromCG(), 2, 10**11)[0].bytes_needed
        with pytest.raises(MemoryError):
            plan_two_layer(MANY, "certificate", NystromCG(rank=4000), 2, few)

    def test_the_certificate_tracker_makes_a_pass_more_than_with_arrays(self) -> None:
        seconds = [Certificate().cost(replace(MANY, arrays=arrays)).seconds for arrays in (False, True)]
        assert seconds[0] - seconds[1] > MANY.seconds_of_a_pass

    def test_few_steps_on_a_million_rows_make_no_bounds_of_samples(self) -> None:
        table = replace(MANY, samples=10**6, features=21, width=8192, outputs=1, steps=Steps.FEW)
        plan, tracker, _ = plan_two_layer(table, "auto", "auto", 2, 10**11)
        assert tracker.name == "dense"
        assert plan.bytes_needed < plan_two_layer(table, "certificate", "auto", 2, 10**11)[0].bytes_needed - 10**9

    def test_dear_products_take_more_columns(self) -> None:
        table = replace(MANY, features=10, width=2**16, outputs=1, firing=0.018)
        pictures, cells = two_layer.preconditioner_rank(MANY), two_layer.preconditioner_rank(table)
        assert 128 <= cells < pictures
        assert two_layer.preconditioner_rank(replace(table, samples=10**6)) <= (1 << 28) / 10**6
        assert two_layer.preconditioner_rank(replace(table, samples=50)) == 50

    def test_looking_at_neurons_takes_little_memory(self) -> None:
        x = np.ones((30_000, 2), np.float32)
        tracemalloc.start()
        work = two_layer.workload_of(TwoLayer(2, 1024, threshold=0.5), x, 0.0, widefit.rules.GaussNewton())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0 < work.alive < 1
        assert peak < 2e7

    def test_few_samples_stay_as_they_were(self) -> None:
        few = Workload(samples=2000, features=20, width=2**16, outputs=1, firing=0.02, itemsize=4)
        plan, _, solver = plan_two_layer(few, "auto", "auto", 2, 10**11)
        assert plan.arrays
        assert solver.name == "cholesky"
        assert all(row[0] != "Gram matrix" for row in plan.rows())

    def test_arrays_that_do_not_fit(self) -> None:
        few = Workload(samples=8000, features=20, width=2**12, outputs=1, firing=0.02, itemsize=4)
        plan, *_ = plan_two_layer(few, "dense", "auto", 2, 10**9)
        assert not plan.arrays
        assert "n × n array does not fit in memory" in str(plan)

    def test_what_asks_for_an_array_is_told_of_the_other_way(self) -> None:
        with pytest.raises(MemoryError, match='solver="auto" takes any number of them'):
            plan_two_layer(MANY, "auto", "cholesky", 2, 8 * 10**9)

    def test_too_many_pairs_are_sent_to_streams(self) -> None:
        with pytest.raises(MemoryError, match=r"a width of|train_stream and partial_fit"):
            plan_two_layer(MANY, "auto", "auto", 2, 10**8)

    def test_steps_that_see_few_samples_need_neither(self) -> None:
        work = Workload(
            samples=10**6, features=5, width=2**10, outputs=1, firing=0.02, itemsize=4, steps=Steps.MINIBATCHES
        )
        assert plan_two_layer(work, "dense", "auto", 1, 10**10)[0].arrays

    def test_fewer_neurons_where_a_step_would_take_long(self) -> None:
        assert affordable_width(10_000, 20, 1.0) == 1 << 16
        assert affordable_width(60_000, 785, 1.0) == 1 << 14
        widths = [affordable_width(samples, 20, 1.0) for samples in (10**4, 10**5, 10**6, 10**7)]
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] < widths[0]


@pytest.fixture
def few_are_many(lists, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 60 rows on a table has many."""
    for module in (base, parameters, tune, held_out):
        monkeypatch.setattr(module, "MANY", 60)
    monkeypatch.setattr(held_out, "SAMPLE", 60)


def test_estimators_choose_the_ridge_on_all_rows(few_are_many) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((240, 3))
    y = np.sin(2 * x[:, 0]) + 0.3 * generator.standard_normal(240)
    model = widefit.WideRegressor((512,)).fit(x, y)
    told = {name: (chosen, reason) for name, chosen, reason in model.plan_.rows()}
    assert told["threshold"][0] == "1"
    assert told["ridge of all rows"][0] == f"{model.alpha_:.3g}"
    assert "for all rows but 24" in told["ridge of all rows"][1]
    # The first solve begins where the choice has ended.
    assert model.history_[1].solver_iterations < 20
    given = widefit.WideRegressor((512,), alpha=model.alpha_, threshold=1.0, readout_scale=1e3).fit(x, y)
    assert "ridge of all rows" not in str(given.plan_)
    spread = np.std(model.predict(x) - y)
    assert np.std(model.predict(x) - given.predict(x)) < 0.2 * spread


def test_classes_are_calibrated_on_the_rows_that_chose_the_ridge(few_are_many) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((240, 3))
    y = np.array(["a", "b", "c"])[(x[:, 0] > 0.3).astype(int) + (x[:, 1] > 0).astype(int)]
    model = widefit.WideClassifier((600,)).fit(x, y)
    assert "for all rows but 24" in str(model.plan_)
    assert model.score(x, y) > 0.9
    chances = model.predict_proba(x)[np.arange(240), np.unique(y, return_inverse=True)[1]]
    assert np.mean(chances) > 0.7


@pytest.mark.parametrize("settings", [{"solver": "cg"}, {"rule": "gradient-descent"}, {"alpha": 0.1}])
def test_what_is_asked_for_leaves_the_ridge_of_few_rows(settings: dict, few_are_many) -> None:
    x, y = problem(1)
    model = widefit.WideRegressor((64,), max_iter=2, **settings).fit(x, y[:, 0])
    assert "ridge of all rows" not in str(model.plan_)


def test_predictions_of_many_rows_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(1)
    model = widefit.WideRegressor((64,), max_iter=2).fit(x, y[:, 0])
    whole = model.predict(x)
    monkeypatch.setattr(base, "_PREDICTED_ROWS", 7)
    np.testing.assert_allclose(model.predict(x), whole, rtol=1e-12, atol=1e-14)
