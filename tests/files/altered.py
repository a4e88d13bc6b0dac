"""Files with one thing changed in them and a checksum that is right: run as a script, for what may crash a process.

    python altered.py FOLDER SUBJECT|all SEED COUNT

makes COUNT altered copies of a subject's file, uses each, and prints what was neither used nor refused in words.
"""

import copy
import faulthandler
import io
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import widefit
from widefit.callbacks import Callback
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.files import Checkpoint, load_parts, read_checkpoint, read_container, write_container
from widefit.finetuning.delta import LayerDelta

SAMPLES, FEATURES, OUTPUTS = 12, 5, 2
STEPS = 3


class AfterSteps(Callback):
    """Writes the checkpoint of the last of some steps and ends the run."""

    def __init__(self, path: Path, steps: int = STEPS):
        self.path, self.steps = path, steps

    def step(self, run: Any, info: Any) -> bool:
        if info.step < self.steps:
            return False
        Checkpoint(self.path).finish(run, run.history)
        return True


def samples() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(SAMPLES, FEATURES))
    return X / np.linalg.norm(X, axis=1, keepdims=True), generator.normal(size=(SAMPLES, OUTPUTS))


def network(**settings: Any) -> widefit.nn.TwoLayer:
    return widefit.nn.TwoLayer(FEATURES, 64, OUTPUTS, threshold=0.5, seed=0, **settings)


def deep() -> widefit.nn.Deep:
    return widefit.nn.Deep(FEATURES, (16, 12, 8), OUTPUTS)


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(FEATURES, 6), torch.nn.Tanh(), torch.nn.Linear(6, OUTPUTS))


class Training:
    """A run of `widefit.train`."""

    kind = "checkpoint"

    def __init__(self, make: Callable[[], Any], steps: int = STEPS, **settings: Any):
        self.make, self.steps, self.settings = make, steps, settings

    def write(self, path: Path) -> None:
        self._run(callbacks=[AfterSteps(path, self.steps)])

    def use(self, path: Path) -> None:
        self._run(resume=read_checkpoint(path))

    def _run(self, **more: Any) -> None:
        widefit.train(self.make(), *samples(), tol=0.0, max_iter=self.steps + 2, threads=1, **self.settings, **more)


class StateDict:
    """The state dict of a regenerated network, its displacement as tensors."""

    kind = "checkpoint"

    def write(self, path: Path) -> None:
        trained = network(store="regenerate")
        widefit.train(trained, *samples(), tol=0.0, max_iter=STEPS, threads=1)
        extra = trained.state_dict()[self._key(trained)]
        tensors = extra["delta"].pop("state")
        write_container(path, tensors, extra, self.kind)

    def use(self, path: Path) -> None:
        tensors, extra = read_container(path, self.kind)
        if isinstance(extra.get("delta"), dict):
            extra["delta"]["state"] = tensors
        fresh = network(store="regenerate")
        fresh.load_state_dict({self._key(fresh): extra})
        fresh(torch.from_numpy(samples()[0]))

    def _key(self, given: torch.nn.Module) -> str:
        return next(name for name in given.state_dict() if name.endswith("_extra_state"))


class Stream:
    """A run of `widefit.train_stream`."""

    kind = "checkpoint"

    def write(self, path: Path) -> None:
        self._run(callbacks=[Checkpoint(path)])

    def use(self, path: Path) -> None:
        self._run(resume=read_checkpoint(path))

    def _run(self, **more: Any) -> None:
        rule = widefit.rules.SGD(batch_size=4, average=True)
        widefit.train_stream(network(), [samples(), samples()], rule=rule, tracker="dense", threads=1, **more)


class Minimization:
    """A run of `GaussNewton.minimize`."""

    kind = "checkpoint"

    def write(self, path: Path) -> None:
        self._run(callbacks=[AfterSteps(path)])

    def use(self, path: Path) -> None:
        self._run(resume=read_checkpoint(path))

    def _run(self, **more: Any) -> None:
        model = module()
        X, y = (torch.from_numpy(part).float() for part in samples())
        widefit.GaussNewton(model).minimize(X, y, max_iter=STEPS + 2, **more)


class Model:
    """A fitted estimator, with the encoding of a table where it is a classifier."""

    kind = "model"

    def __init__(self, task: str, batches: int = 0, **settings: Any):
        self.task, self.batches, self.settings = task, batches, settings

    def write(self, path: Path) -> None:
        table = read_table("iris")
        encoding = TableEncoding.learn(table.frame, "species")
        X, labels = encoding.encode(table.frame), encoding.target.values(table.frame)
        estimator = widefit.WideRegressor if self.task == "regression" else widefit.WideClassifier
        model = estimator(**self.settings)
        y = X[:, 0] if self.task == "regression" else labels
        for _ in range(self.batches):
            model.partial_fit(X, y, **({} if self.task == "regression" else {"classes": np.unique(y)}))
        widefit.save(model if self.batches else model.fit(X, y), path, encoding=encoding.to_dict())

    def use(self, path: Path) -> None:
        model, record = load_parts(path)
        frame = read_table("iris").frame
        encoding = TableEncoding.from_dict(record) if record is not None else None
        X = encoding.encode(frame) if encoding is not None else frame[:, :4].to_numpy()
        model.predict(X)
        if self.batches:
            y = X[:, 0] if self.task == "regression" else encoding.target.values(frame) if encoding else None
            model.partial_fit(X, y)


class Delta:
    """Low-rank changes of layers from fine-tuning."""

    kind = "delta"

    def write(self, path: Path) -> None:
        layers = {
            "0": LayerDelta(torch.ones(6, 1), torch.ones(FEATURES, 1), torch.ones(6)),
            "2": LayerDelta(torch.ones(OUTPUTS, 6), None, None),
        }
        widefit.LowRankDelta(layers).save(path)

    def use(self, path: Path) -> None:
        widefit.LowRankDelta.load(path).merged(module())


SUBJECTS: dict[str, Any] = {
    "certificate": Training(network, tracker="certificate", alpha=1e-3),
    "certificate with sgd": Training(network, tracker="certificate", rule="sgd"),
    "regenerated": Training(lambda: network(store="regenerate"), tracker="certificate"),
    "state dict of a regenerated network": StateDict(),
    "dense with an average": Training(network, tracker="dense", rule=widefit.rules.SGD(average=True)),
    "verlet list": Training(
        lambda: widefit.nn.TwoLayer(FEATURES, 2048, OUTPUTS, threshold=2.0, readout_scale=30.0, seed=0),
        steps=8,
        tracker="verlet-list",
        rule="gradient-descent",
    ),
    "verlet list with sgd": Training(network, tracker="verlet-list", rule="sgd"),
    "weight tree": Training(network, tracker="weight-tree", alpha=1e-3),
    "data tree": Training(network, tracker="data-tree"),
    "half-space tree": Training(network, tracker="half-space-tree", rule="gradient-descent"),
    "deep": Training(deep, alpha=1e-3),
    "stream": Stream(),
    "minimization": Minimization(),
    "regressor": Model("regression", hidden_layer_sizes=(32,), max_iter=2),
    "deep classifier": Model("classification", hidden_layer_sizes=(16, 8), max_iter=2),
    "classifier of a stream": Model(
        "classification",
        2,
        hidden_layer_sizes=(32,),
        rule=widefit.rules.SGD(loss="softmax", average=True),
        random_state=1,
    ),
    "delta": Delta(),
}

VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 2**31, -(2**63), 2**70, 10**400, 0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "a", "\ud800", "é" * 50, "O", "M8[ns]", "<U99999999", [], {}, [1], ["a"], {"a": 1}, [[]], "inf"),
]
NUMBERS = [0, 1, -1, SAMPLES, 2**31 - 1, -(2**31), 2**62, 0.5, 1e30, 1e308, math.nan, math.inf]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool]


def altered(generator: np.random.Generator, tensors: dict, document: dict) -> tuple[dict, dict, str]:
    """One change in a copy, and what it is."""
    tensors, document = dict(tensors), copy.deepcopy(document)
    if tensors and generator.random() < 0.5:
        name = str(generator.choice(sorted(tensors)))
        return {**tensors, **_altered_tensor(generator, name, tensors)}, document, f"tensor {name}"
    places = list(_places(document))
    holder, key = places[generator.integers(len(places))]
    change = generator.integers(4)
    if change == 0 and isinstance(holder, dict):
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[f"{key}!"] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(VALUES[generator.integers(len(VALUES))])
    return tensors, document, f"document, at {key!r}"


def _altered_tensor(generator: np.random.Generator, name: str, tensors: dict) -> dict:
    tensor = tensors[name].clone()
    change = generator.integers(7)
    if change == 0:
        return {f"{name}.": tensor, name: tensor[:0] if tensor.ndim else tensor[None]}
    if change == 1:
        return {name: tensor.to(DTYPES[generator.integers(len(DTYPES))])}
    if change == 2:
        return {name: tensor.reshape(-1) if tensor.ndim != 1 else tensor[None]}
    if change == 3:
        return {name: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None, None]}
    if not tensor.numel():
        return {name: torch.ones(3, dtype=tensor.dtype)}
    flat = tensor.reshape(-1)
    low = int(generator.integers(flat.numel()))
    high = flat.numel() if change == 4 else low + 1
    value = NUMBERS[generator.integers(len(NUMBERS))]
    if not tensor.dtype.is_floating_point:
        low_bound, high_bound = _bounds(tensor.dtype)
        value = max(low_bound, min(high_bound, int(value if math.isfinite(value) else 7)))
    flat[low:high] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    return {name: tensor}


def _bounds(dtype: torch.dtype) -> tuple[int, int]:
    return (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def main(folder: Path, names: list[str], seed: int, count: int) -> int:
    """How many altered files were neither used nor refused in words."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    wrong = 0
    for name in names:
        subject, original, path = SUBJECTS[name], folder / f"{name}.whole", folder / f"{name}.altered"
        subject.write(original)
        subject.use(original)
        tensors, document = read_container(original, subject.kind)
        for number in range(count):
            given, said, what = altered(np.random.default_rng([seed, number]), tensors, document)
            with suppress(ValueError):  # what cannot be written
                write_container(path, given, said, subject.kind)
                print(f"{name}, seed {seed}, number {number}: {what}", file=sys.stderr, flush=True)
                wrong += not fails_in_words(subject, path)
    return wrong


def fails_in_words(subject: Any, path: Path) -> bool:
    """Whether a file is used, or refused as a user would want it."""
    try:
        with redirect_stdout(io.StringIO()):
            subject.use(path)
    except (ValueError, ArithmeticError):
        return True
    except Exception:
        print(traceback.format_exc())
        return False
    return True


if __name__ == "__main__":
    chosen = list(SUBJECTS) if sys.argv[2] == "all" else [sys.argv[2]]
    sys.exit(main(Path(sys.argv[1]), chosen, int(sys.argv[3]), int(sys.argv[4])) > 0)
