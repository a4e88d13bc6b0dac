"""The same training by several processes, each with a share of the neurons, and by one: see `test_shared_training`."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from typer.testing import CliRunner

import widefit
from widefit import Processes, WideClassifier, WideRegressor
from widefit.callbacks import Callback
from widefit.cli.app import app
from widefit.files import Checkpoint, read_checkpoint
from widefit.nn import Deep, TwoLayer
from widefit.plan import two_layer as plan
from widefit.processes import ProcessError
from widefit.solvers import NystromCG
from widefit.training import two_layer

STEPS = 4


def rows(outputs: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((count, 4))
    x[7] = x[3]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, np.stack([np.sin((c + 2) * x[:, c % 4]) for c in range(outputs)], axis=1)


def network(outputs: int, uneven: bool = False, **settings: Any) -> TwoLayer:
    made = TwoLayer(4, 38 * outputs + 90, outputs, threshold=0.5, paired=True, seed=1, dtype=torch.float64, **settings)
    if uneven:
        with torch.no_grad():
            made.readout.mul_(torch.linspace(0.5, 2, made.width, dtype=torch.float64)[:, None])
    return made


def compared(name: str, group: Processes, outputs: int = 1, uneven: bool = False, **options: Any) -> dict[str, Any]:
    """A run of one process and of several, from the same start."""
    x, y = rows(outputs)
    if options.get("loss") == "softmax":
        y = np.eye(outputs)[np.abs(y).argmax(axis=1)]
    weight = np.linspace(0.5, 2, len(x))
    one, many = network(outputs, uneven), network(outputs, uneven)
    settings = {"max_iter": STEPS, "tol": 0.0, "sample_weight": weight} | options
    expected = widefit.train(one, x, y, **settings)
    found = widefit.train(many, x, y, process_group=group, **settings)
    return {
        "name": f"{name}, {outputs} outputs, {options.get('tracker', 'auto')}, {group.size} processes",
        "apart": float((one.weight - many.weight).detach().norm() / one.weight.detach().norm()),
        "losses": max(abs(a / b - 1) for a, b in zip(found.losses, expected.losses, strict=True)),
        "flips": [[info.flips for info in history.steps] for history in (found, expected)],
        "moved": found.losses[-1] / found.losses[0],
    }


def comparisons(group: Processes) -> list[dict[str, Any]]:
    found = []
    if group.size == 2:
        return [compared("ridge", group, 10, alpha=0.05), compared("interpolation", group, tracker="dense")]
    for tracker in ("certificate", "dense"):
        found += [
            compared("interpolation", group, tracker=tracker),
            compared("ridge", group, 10, tracker=tracker, alpha=0.05),
            compared("descent", group, 2, tracker=tracker, rule="gradient-descent", alpha=0.05),
        ]
    search = widefit.rules.GradientDescent(schedule="line-search")
    found += [
        compared("classes", group, 10, loss="softmax", alpha=0.05),
        compared("other readouts", group, 2, uneven=True),
        compared("search", group, 2, rule=search),
    ]
    forms, few = plan._forms, plan.ESTIMATE_SAMPLES
    plan._forms = lambda work, solver: [("fire lists", "this test")]
    exact = NystromCG(tolerance=1e-12)
    found.append(compared("fire lists", group, 2, tracker="certificate", alpha=0.05, solver=exact))
    plan._forms = forms
    two_layer.ESTIMATE_SAMPLES = 20
    found.append(compared("few rows tell the rate", group, rule="gradient-descent"))
    two_layer.ESTIMATE_SAMPLES = few
    return found


def resumed(folder: Path, first: Processes | None, then: Processes | None, tracker: str) -> float:
    """Difference of a run that another number of processes ends from one that one process takes alone."""
    x, y = rows(3)
    options = {"tracker": tracker, "alpha": 0.05, "tol": 0.0}
    path = folder / f"{tracker}-{first and first.size}-{then and then.size}-{dist.get_rank() if first is None else 0}"
    alone = network(3)
    widefit.train(alone, x, y, max_iter=STEPS, **options)
    begun = network(3)
    keep = Checkpoint(path, every_seconds=0)
    widefit.train(begun, x, y, max_iter=2, callbacks=[keep], process_group=first, **options)
    if first is not None:
        first.meet()
    ended = network(3)
    history = widefit.train(ended, x, y, max_iter=STEPS, resume=read_checkpoint(path), process_group=then, **options)
    assert len(history) == STEPS + 1
    return float((alone.weight - ended.weight).detach().norm() / alone.weight.detach().norm())


def estimators(group: Processes) -> dict[str, Any]:
    """Models of several processes and of one, their predictions and what they tell."""
    x, y = rows(1, 120)
    found: dict[str, Any] = {}
    labels = np.array([f"class {place}" for place in range(10)])[(5 * (x[:, 0] + 1)).astype(int) % 10]
    for kind, targets in ((WideRegressor, y[:, 0]), (WideClassifier, labels)):
        one, many = (kind(hidden_layer_sizes=(400,), max_iter=3) for _ in range(2))
        validation = (x[:30], targets[:30])
        one.fit(x, targets, validation=validation)
        many.fit(x, targets, validation=validation, process_group=group)
        name = kind.__name__
        expected, got = (model._outputs(x) for model in (one, many))
        found[name] = {
            "apart": float(np.abs(expected - got).max() / np.abs(expected).max()),
            "metric": [one.history_[-1].metric, many.history_[-1].metric],
            "parts": [sorted(model.to_parts()[0]) for model in (one, many)],
            "seeds": [model.network_.seed for model in (one, many)],
            "choices": [[str(row) for row in model.plan_.rows() if row[0] != "tracker"] for model in (one, many)],
        }
    return found


def refusals(group: Processes) -> dict[str, str]:
    """The errors that every process raises."""
    x, y = rows(1)
    last = group.rank == group.size - 1

    def error(work: Callable[[], Any]) -> str:
        try:
            work()
        except ValueError as caught:
            return str(caught)
        return "nothing"

    def train(made: Any = None, inputs: np.ndarray = x, **options: Any) -> str:
        own = network(1) if made is None else made
        return error(lambda: widefit.train(own, inputs, y, process_group=group, max_iter=1, **options))

    return {
        "deep": train(Deep(4, (20, 20), 1, dtype=torch.float64)),
        "sgd": train(rule="sgd"),
        "regenerate": train(network(1, store="regenerate")),
        "tracker": train(tracker="verlet-list"),
        "narrow": train(TwoLayer(4, 2, 1, dtype=torch.float64)),
        "rows": train(inputs=x[::-1].copy() if last else x),
        "options": train(alpha=float(last)),
        "network": train(TwoLayer(4, 128, 1, threshold=0.5, seed=int(last), dtype=torch.float64)),
        "after": train(),
    }


def command(folder: Path) -> dict[str, Any]:
    """`widefit train` as torchrun starts it, in this process."""
    x, y = rows(1, 80)
    here = folder / f"table-{dist.get_rank()}"
    here.mkdir()
    table = here / "table.csv"
    lines = [",".join(f"{value:.6f}" for value in (*row, *target)) for row, target in zip(x, y, strict=True)]
    table.write_text("a,b,c,d,target\n" + "\n".join(lines), encoding="utf-8")
    os.environ |= {"TORCHELASTIC_RUN_ID": "fit", "WORLD_SIZE": str(dist.get_world_size())}
    arguments = ["train", str(table), "--width", "200", "-o", str(here / "model.widefit")]
    ran = CliRunner().invoke(app, arguments)
    absent = CliRunner().invoke(app, ["train", str(table) if dist.get_rank() < 2 else str(here / "absent.csv")])
    os.environ.pop("TORCHELASTIC_RUN_ID")
    return {
        "code": ran.exit_code,
        "said": len(ran.output),
        "files": sorted(path.name for path in here.iterdir()),
        "absent": [absent.exit_code, absent.output],
    }


class Pauses(Callback):
    """The last process stops in the second step: for some seconds, or for good."""

    def __init__(self, group: Processes, work: Callable[[], None]):
        self._last, self._work = group.rank == group.size - 1, work

    def step(self, run: Any, info: Any) -> None:
        if self._last and info.step == 2:
            self._work()


def left_waiting(group: Processes, work: Callable[[], None]) -> list[Any]:
    """The error of those that wait for the last process in vain, and the weights that they are left with."""
    made = network(1)
    before = made.weight.detach().clone()
    try:
        widefit.train(made, *rows(1), tol=0.0, callbacks=[Pauses(group, work)], process_group=group)
    except ProcessError as error:
        return [str(error), bool(torch.equal(before, made.weight))]
    return ["nothing", False]


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    group = Processes()
    members = dist.new_group([0, 1])
    found: dict[str, Any] = {"comparisons": comparisons(group), "resumed": {}}
    pair = Processes(members) if rank < 2 else None
    if pair is not None:
        found["comparisons"] += comparisons(pair)
        for tracker in ("certificate", "dense"):
            found["resumed"] |= {
                f"{tracker}, one and two": resumed(folder, None, pair, tracker),
                f"{tracker}, two and one": resumed(folder, pair, None, tracker),
            }
    group.meet()
    found["resumed"]["three and one"] = resumed(folder, group, None, "certificate")
    found["resumed"]["one and three"] = resumed(folder, None, group, "certificate")
    found["estimators"] = estimators(group)
    found["refusals"] = refusals(group)
    found["command"] = command(folder)
    if pair is not None:
        pair.timeout = 1.0
        found["stalled"] = left_waiting(pair, lambda: time.sleep(1.5))
    found["stopped"] = left_waiting(group, lambda: os._exit(0))
    (folder / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    main()
