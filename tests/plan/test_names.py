"""One registry of names: Python, the command line, messages and docstrings cannot disagree."""

import inspect
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import widefit
from widefit.cli.app import app
from widefit.losses import family
from widefit.nn import TwoLayer
from widefit.nn.shifted_relu import ShiftedReLU
from widefit.optim.curvature import Spectral
from widefit.optim.many_rows import SketchedPrimal, Triangular
from widefit.plan import names
from widefit.plan.names import Registry, resolve
from widefit.plan.step import StepShape, plan_step
from widefit.rules import SGD, Rule
from widefit.solvers import CG, Primal, Solver
from widefit.trackers import Tracker

REGISTRIES = {
    "rules": (names.RULES, Rule),
    "trackers": (names.TRACKERS, Tracker),
    "two-layer solvers": (names.TWO_LAYER_SOLVERS, Solver),
    "deep solvers": (names.DEEP_SOLVERS, Solver),
    "solvers of a step": (names.STEP_SOLVERS, Solver),
}
# What a name of the optimizer stands for beyond solvers in sample space.
IN_PARAMETER_SPACE = {"svd": Spectral, "qr": Triangular, "primal": Solver, "primal-cg": SketchedPrimal}


@pytest.mark.parametrize(("registry", "base"), REGISTRIES.values(), ids=REGISTRIES)
def test_every_name_is_the_one_of_its_class(registry: Registry, base: type) -> None:
    for name in registry.homes:
        kind = registry.kind(name)
        if name in IN_PARAMETER_SPACE:
            assert issubclass(kind, IN_PARAMETER_SPACE[name])
            continue
        assert issubclass(kind, base)
        assert kind().name == name
        assert type(resolve(name, registry)) is kind


@pytest.mark.parametrize(
    ("package", "registry", "base"),
    [(widefit.trackers, names.TRACKERS, Tracker), (widefit.rules, names.RULES, Rule)],
    ids=["trackers", "rules"],
)
def test_every_public_class_has_a_name(package, registry: Registry, base: type) -> None:
    public = {getattr(package, name) for name in package.__all__}
    concrete = {
        kind for kind in public if isinstance(kind, type) and issubclass(kind, base) if not inspect.isabstract(kind)
    }
    assert concrete == {registry.kind(name) for name in registry.homes}


def test_solvers_are_reached_by_some_name() -> None:
    reached = {kind for registry, _ in REGISTRIES.values() for kind in map(registry.kind, registry.homes)}
    public = {getattr(widefit.solvers, name) for name in widefit.solvers.__all__}
    concrete = {kind for kind in public if issubclass(kind, Solver) and not inspect.isabstract(kind)}
    # "primal" is a way of the optimizer; the solver in sample space is what fine-tuning takes for a readout.
    assert concrete - {Primal} <= reached


def test_objects_are_themselves() -> None:
    rule, solver = SGD(batch_size=7), CG(tolerance=0.5)
    assert resolve(rule, names.RULES) is rule
    assert resolve(solver, names.DEEP_SOLVERS) is solver


@pytest.mark.parametrize("value", ["magic", 3, None, CG()])
def test_what_is_unknown_is_refused_with_all_names(value) -> None:
    with pytest.raises(ValueError, match=r'tracker must be one of "auto", "dense", .* or a Tracker, got') as caught:
        resolve(value, names.TRACKERS)
    assert all(f'"{name}"' in str(caught.value) for name in names.TRACKERS)


def test_losses_and_activations() -> None:
    assert tuple(family.RULE_LOSSES) == names.RULE_LOSSES
    assert tuple(family.TORCH_LOSSES) == names.TORCH_LOSSES
    for convention in names.ACTIVATIONS.values():
        assert ShiftedReLU(convention=convention).convention == convention


def test_trackers_that_take_streams() -> None:
    network = TwoLayer(3, 64)
    for name in names.TRACKERS.homes:
        tracker = resolve(name, names.TRACKERS)
        if name in names.STREAM_TRACKERS:
            assert tracker.stream(network).name == name
        else:
            with pytest.raises(ValueError, match="a stream takes"):
                tracker.stream(network)


def entry(function, argument: str) -> set[str]:
    """Words in double quotes, or in braces, of the entry of an argument in a docstring."""
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"{argument}( :.*)?$", line))
    body = [lines[start]]
    for line in lines[start + 1 :]:
        if not line.startswith("    "):
            break
        body.append(line)
    return set(re.findall(r'"([a-z_-]+)"', " ".join(body)))


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (widefit.train, "tracker", {*names.TRACKERS, *names.DEEP_TRACKERS}),
        (widefit.train, "solver", {*names.TWO_LAYER_SOLVERS, *names.DEEP_SOLVERS}),
        (widefit.train, "loss", {*names.RULE_LOSSES, "cross_entropy"}),
        (widefit.train_stream, "tracker", {"auto", *names.STREAM_TRACKERS}),
        (widefit.WideRegressor, "rule", set(names.RULES)),
        (widefit.WideRegressor, "tracker", set(names.TRACKERS)),
        (widefit.WideRegressor, "solver", {*names.TWO_LAYER_SOLVERS, *names.DEEP_SOLVERS}),
        (widefit.WideRegressor, "activation", set(names.ACTIVATIONS)),
        (widefit.WideClassifier, "loss_", set(names.RULE_LOSSES)),
        (widefit.GaussNewton, "solver", set(names.STEP_SOLVERS)),
        (widefit.GaussNewton, "loss", set(names.TORCH_LOSSES)),
        (widefit.finetune, "loss", {*names.TORCH_LOSSES, "next_token"}),
        (widefit.finetune, "layers", set(names.LAYERS)),
        (widefit.rules.SGD, "loss", set(names.RULE_LOSSES)),
    ],
)
def test_docstrings_tell_all_names(function, argument: str, expected: set[str]) -> None:
    assert entry(function, argument) == expected


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("train", "--tracker", tuple(names.TRACKERS)),
        ("train", "--solver", tuple(dict.fromkeys([*names.TWO_LAYER_SOLVERS, *names.DEEP_SOLVERS]))),
        ("train", "--rule", tuple(names.RULES)),
        ("train", "--activation", tuple(names.ACTIVATIONS)),
        ("finetune", "--loss", ("auto", *names.TORCH_LOSSES)),
    ],
)
def test_the_command_line_takes_these_names_and_no_others(command: str, option: str, expected: tuple[str, ...]) -> None:
    runner = CliRunner()
    arguments = ["nowhere.csv"] if command == "train" else ["a:b", "nowhere.pt", "nowhere.csv"]
    refused = runner.invoke(app, [command, *arguments, option, "magic"])
    assert refused.exit_code == 2
    said = " ".join(refused.output.replace("│", " ").split())
    assert f"'magic' is not one of {', '.join(map(repr, expected))}" in said
    for name in expected:
        taken = runner.invoke(app, [command, *arguments, option, name])
        assert "is not one of" not in taken.output
        assert taken.exit_code != 0


def test_names_are_at_hand_without_torch() -> None:
    code = (
        "import sys\nimport widefit.plan.names as names\n"
        "assert list(names.TRACKERS)[0] == 'auto'\n"
        "heavy = {'torch', 'numba', 'numpy', 'scipy', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_step_takes_every_solver_of_the_optimizer() -> None:
    for name in names.STEP_SOLVERS.homes:
        assert plan_step(StepShape(60, 40, 8), torch.float64, 10**9, name).solver == name
