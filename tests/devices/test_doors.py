"""`device=` of the estimators and `--device` of the command line."""

import numpy as np
import pytest
import torch
from command_line import call
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


@pytest.mark.parametrize("sizes", [(256,), (48, 40)])
def test_an_estimator_trains_there_and_comes_back(table, there, tmp_path, sizes):
    X, y = table
    model = widefit.WideRegressor(sizes, device=there).fit(X, y, validation=(X, y))
    assert all(tensor.device.type == "cpu" for tensor in model.network_.state_dict().values())
    assert ("tracker", "torch", "the weights are on lazy") in model.plan_.rows()
    assert ("device", "lazy, float32", "as asked for") in model.plan_.rows()
    expected = widefit.WideRegressor(sizes, tracker="torch").fit(X, y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-5, atol=1e-5)
    widefit.save(model, tmp_path / "model.widefit")
    np.testing.assert_array_equal(widefit.load(tmp_path / "model.widefit").predict(X), model.predict(X))


def test_what_cannot_be_trained_there_is_refused(table, there):
    drawn = widefit.nn.TwoLayer(3, 2**9, store="regenerate")
    with pytest.raises(ValueError, match=r"is trained on the CPU: use device=\"cpu\""):
        widefit.train(drawn, *table, device=there)
    deep = widefit.nn.Deep(3, (64, 64))
    with pytest.raises(ValueError, match='"sparse" works on the CPU, and the weights are on lazy'):
        widefit.train(deep, *table, tracker="sparse", device=there)
    with pytest.raises(ValueError, match="rule must take all samples at once for a deep network"):
        widefit.train(deep, *table, rule="sgd", device=there)


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


def test_the_command_line_fine_tunes_there(table, there, tmp_path):
    """The numbers are those of the processor, and the files have no device."""
    (tmp_path / "a_module.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))\n"
    )
    X, _ = table
    lines = ["a,b,c,kind", *(f"{a:.4f},{b:.4f},{c:.4f},{'ant' if a > b else 'bee'}" for a, b, c in X)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    before = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).state_dict()
    torch.save(before, tmp_path / "weights.pt")
    found = {}
    for device in ("cpu", there):
        options = ("--target", "kind", "--max-iter", "3", "--out", "new.pt", "--delta", "new.delta", "--device", device)
        ran = call("finetune", "a_module:build", "weights.pt", "table.csv", *options, folder=tmp_path)
        assert ran.code == 0, ran.stderr
        found[device] = torch.load(tmp_path / "new.pt", weights_only=True)
        assert any(not torch.equal(before[name], found[device][name]) for name in before)
    for name, expected in found["cpu"].items():
        torch.testing.assert_close(found[there][name], expected, rtol=1e-4, atol=1e-5)


def test_the_command_line_trains_layers_there(table, there, tmp_path):
    X, y = table
    lines = ["a,b,c,y", *(f"{a:.4f},{b:.4f},{c:.4f},{t:.4f}" for (a, b, c), t in zip(X, y, strict=True))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    ran = call(
        *(
            "train",
            "table.csv",
            "--target",
            "y",
            "--hidden-layer-sizes",
            "48,40",
            "--device",
            there,
            "-o",
            "new.widefit",
        ),
        folder=tmp_path,
    )
    assert ran.code == 0, ran.stderr
    assert "the weights are on lazy" in ran.stdout + ran.stderr
    assert widefit.load(tmp_path / "new.widefit").network_.hidden_layer_sizes == (48, 40)
