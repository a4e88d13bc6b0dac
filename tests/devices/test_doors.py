"""`device=` of the estimators and `--device` of the command line."""

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, Watched

import widefit
from widefit.cli.run import finetune
from widefit.training import problem


@pytest.fixture
def table() -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).standard_normal((40, 3))
    return X, np.sin(X[:, 0])


@pytest.fixture
def there(monkeypatch):
    """The device that is not there, under its name."""
    for module in (problem, finetune):
        monkeypatch.setattr(module, "device_named", torch.device)
    with Watched():
        yield str(DEVICE)


def test_an_estimator_trains_there_and_comes_back(table, there, tmp_path):
    X, y = table
    model = widefit.WideRegressor((256,), device=there).fit(X, y, validation=(X, y))
    assert model.network_.weight.device.type == "cpu"
    assert ("tracker", "torch", "the weights are on lazy") in model.plan_.rows()
    assert ("device", "lazy, float32", "as asked for") in model.plan_.rows()
    expected = widefit.WideRegressor((256,), tracker="torch").fit(X, y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-5, atol=1e-5)
    widefit.save(model, tmp_path / "model.widefit")
    np.testing.assert_array_equal(widefit.load(tmp_path / "model.widefit").predict(X), model.predict(X))


@pytest.mark.parametrize("sizes", [(64, 64), (2**9,)])
def test_what_cannot_be_trained_there_is_refused(table, there, sizes):
    network = widefit.nn.Deep(3, sizes) if len(sizes) > 1 else widefit.nn.TwoLayer(3, sizes[0], store="regenerate")
    with pytest.raises(ValueError, match=r"is trained on the CPU: use device=\"cpu\""):
        widefit.train(network, *table, device=there)


def test_a_stream_is_learnt_on_the_processor(table):
    with pytest.raises(ValueError, match="a stream is learnt on the CPU"):
        widefit.WideRegressor((64,), rule="sgd", device="cuda").partial_fit(*table)


@pytest.mark.parametrize("estimator", [widefit.WideRegressor, widefit.WideClassifier])
def test_an_absent_device_is_refused(table, estimator):
    X, y = table
    with pytest.raises(ValueError, match='device="xpu" is not at hand; here there is "cpu"'):
        estimator((64,), device="xpu").fit(X, y > 0)


def test_the_command_line_refuses_it_too(tmp_path):
    from typer.testing import CliRunner

    from widefit.cli.app import app

    found = CliRunner().invoke(app, ["train", "iris", "--width", "64", "--device", "xpu", "-o", str(tmp_path / "m")])
    assert found.exit_code != 0
    assert 'device="xpu" is not at hand' in found.output
