"""The same training by several processes, each with its own rows, and by one: started by `test_processes`."""

import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "devices"))
from elsewhere import DEVICE, Watched  # pyright: ignore[reportMissingImports]

from widefit import GaussNewton, Processes, Residual
from widefit.processes import ProcessError

CLASSES = 3


def network(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for low, high in pairwise(widths):
        layers += [nn.Linear(low, high), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def rows(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return x, torch.sin(3 * x.sum(dim=1, keepdim=True))


def equation(net: nn.Module, point: Tensor) -> Tensor:
    value, slope = torch.func.vjp(lambda at: net(at)[0], point)
    return slope(torch.ones_like(value))[0].sum() + value - torch.sin(point).sum()


def value(net: nn.Module, point: Tensor, wanted: Tensor) -> Tensor:
    return net(point) - wanted


def shared_out(count: int, edges: list[float], rank: int) -> slice:
    places = [round(part * count) for part in edges]
    return slice(places[rank], places[rank + 1])


def compare(
    name: str,
    make: Callable[[Any], GaussNewton],
    data: Callable[[slice, slice], tuple[Any, ...]],
    count: int,
    edges: list[float],
    group: Processes,
    steps: int = 2,
) -> dict[str, Any]:
    """Steps of several processes and of one on all rows, from the same start."""
    everything = slice(0, count)
    one, many = make(None), make(group)
    mine = data(shared_out(count, edges, group.rank), everything)
    whole = data(everything, everything)
    infos = [(one.step(*whole), many.step(*mine)) for _ in range(steps)]
    pairs = zip(one.model.parameters(), many.model.parameters(), strict=True)
    apart = max(float((a - b).detach().norm() / a.detach().norm()) for a, b in pairs)
    return {
        "name": name,
        "apart": apart,
        "losses": [abs(a.loss - b.loss) / a.loss for a, b in infos],
        "fell": infos[-1][1].loss / one.history[0].loss,
        "solvers": [one.plan.solver, many.plan.solver],
        "evaluated": abs(one.evaluate(*whole) - many.evaluate(*mine)) / infos[-1][0].loss,
    }


def comparisons(group: Processes, few: bool = False, place: torch.device | str = "cpu") -> list[dict[str, Any]]:
    even = [part / group.size for part in range(group.size + 1)]
    uneven = [0.0, 0.07, *([0.07] * (group.size - 2)), 1.0]  # with three processes the second has no rows
    x, y = (tensor.to(place) for tensor in rows(900))
    classes = (3 * x[:, 0]).long()

    def least_squares(here: slice, _: slice) -> tuple[Any, ...]:
        return x[here], y[here]

    def kinds(here: slice, everything: slice) -> tuple[Any, ...]:
        # All data of the second kind are with one process.
        full = here == everything
        ends = slice(0, 40) if group.rank == 0 or full else slice(0, 0)
        return Residual(equation, x[here]), Residual(value, x[ends], y[ends], weight=10.0)

    def labels(here: slice, _: slice) -> tuple[Any, ...]:
        return x[here], classes[here]

    def maker(widths: tuple[int, ...], **options: Any) -> Callable[[Any], GaussNewton]:
        return lambda processes: GaussNewton(network(*widths).to(place), process_group=processes, **options)

    small, large = (3, 8, 1), (3, 40, 40, 1)
    direct, iterative = ("auto", "primal", "primal-cg"), ("cholesky", "cg", "nystrom-cg", "sketched-cg")
    found = [compare(name, maker(small, solver=name), least_squares, 900, uneven, group) for name in direct]
    if few:
        return found
    found += [compare(name, maker(large, solver=name), least_squares, 60, uneven, group) for name in iterative]
    found.append(compare("residuals", maker(small), kinds, 300, even, group))
    found.append(compare("classes", maker((3, 8, CLASSES), loss="cross_entropy"), labels, 400, even, group))
    own_loss = maker(small, loss=lambda outputs, wanted: ((outputs - wanted) ** 4 + (outputs - wanted) ** 2).mean())
    found.append(compare("custom", own_loss, least_squares, 300, even, group))
    bounded = maker(small, bounds={"0.bias": (-0.6, 0.6)})
    found.append(compare("bounds", bounded, least_squares, 300, even, group))
    return found


def refusals(group: Processes) -> dict[str, str]:
    """The errors that every process raises for what is wrong on one."""
    x, y = rows(60)
    here = slice(group.rank * 20, group.rank * 20 + 20)
    x, y = x[here].clone(), y[here]
    last = group.rank == group.size - 1

    def error(work: Callable[[], Any]) -> str:
        try:
            work()
        except (ValueError, ProcessError) as caught:
            return str(caught)
        return "nothing"

    broken = x.clone()
    broken[3] = torch.nan
    seeded = network(3, 4, 1)
    if last:
        with torch.no_grad():
            seeded[0].weight += 1
    plain = GaussNewton(network(3, 4, 1), process_group=group)
    ahead = GaussNewton(network(3, 4, 1), process_group=group)
    if last:  # it alone goes on from an earlier run
        begun = GaussNewton(network(3, 4, 1))
        begun.step(x, y)
        ahead.load_state_dict(begun.state_dict())
    told = {
        "nan": error(lambda: plain.step(broken if last else x, y)),
        "kinds": error(lambda: plain.step(x[:, :2] if last else x, y)),
        "count": error(lambda: plain.step(*((x,) if last else (x, y)))),
        "empty": error(lambda: plain.step(x[:0], y[:0])),
        "model": error(lambda: GaussNewton(seeded, process_group=group).step(x, y)),
        "options": error(lambda: GaussNewton(network(3, 4, 1), seed=int(last), process_group=group).step(x, y)),
        "state": error(lambda: ahead.step(x, y)),
        "residual": error(lambda: plain.step(Residual(failing if last else value, x, y))),
    }
    small = GaussNewton(network(3, 4, 1), memory=100 if last else "auto", process_group=group)
    told |= {
        "covariance": error(lambda: plain.covariance(Residual(derivative_fails if last else value, x, y))),
        "covariance memory": error(lambda: small.covariance(x, y)),
        "covariance data": error(lambda: plain.covariance(*(() if last else (x, y)))),
        "derivative": error(lambda: plain.step(Residual(derivative_fails if last else value, x, y))),
    }
    told["after"] = f"{plain.step(x, y).loss:.12g}"  # all are still in step with each other
    return told


def failing(net: nn.Module, point: Tensor, wanted: Tensor) -> Tensor:
    raise RuntimeError("no such residual")


class Unprepared(torch.autograd.Function):
    """A function whose derivative cannot be taken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("no such derivative")


def derivative_fails(net: nn.Module, point: Tensor, wanted: Tensor) -> Tensor:
    return Unprepared.apply(net(point) - wanted)


def resumed(group: Processes) -> float:
    """Difference of a run of several processes that goes on alone from one that does not."""
    x, y = rows(200)
    here = shared_out(200, [0.0, 0.3, *([1.0] * (group.size - 1))], group.rank)
    first = GaussNewton(network(3, 8, 1), process_group=group)
    for _ in range(2):
        first.step(x[here], y[here])
    alone = GaussNewton(network(3, 8, 1))
    alone.model.load_state_dict(first.model.state_dict())
    alone.load_state_dict(first.state_dict())
    loss = alone.step(x, y).loss
    return abs(loss - first.step(x[here], y[here]).loss) / loss


def left_waiting(group: Processes, optimizer: GaussNewton) -> str:
    """The error of a process that waits for another in vain."""
    x, y = rows(50)
    try:
        optimizer.step(x, y)
    except ProcessError as error:
        return str(error)
    return "nothing"


def stalled(pair: Processes) -> str:
    """The first process of two waits a second for the other one, which is busy with something else."""
    optimizer = GaussNewton(network(3, 8, 1), process_group=pair)
    pair.timeout = 1.0
    return left_waiting(pair, optimizer) if pair.rank == 0 else ""


def stopped(group: Processes) -> str:
    """The others are told at once that the last process has ended."""
    optimizer = GaussNewton(network(3, 8, 1), process_group=group)
    optimizer.step(*rows(50))
    dist.barrier()
    if group.rank == group.size - 1:
        os._exit(0)
    return left_waiting(group, optimizer)


def covariance(group: Processes) -> float:
    x, y = rows(300)
    here = shared_out(300, [0.0, 0.2, *([1.0] * (group.size - 1))], group.rank)
    many, one = (GaussNewton(network(3, 2, 1), process_group=processes) for processes in (group, None))
    ours, theirs = many.covariance(x[here], y[here]), one.covariance(x, y)
    return float((ours - theirs).norm() / theirs.norm())


def minimized(group: Processes) -> list[Any]:
    """A run that one process alone wants to end, after its third step."""
    x, y = rows(100)
    optimizer = GaussNewton(network(3, 8, 1), process_group=group)

    class Ends:
        def start(self, run: Any) -> None: ...

        def step(self, run: Any, info: Any) -> bool:
            return group.rank == group.size - 1 and info.step >= 3

        def finish(self, run: Any, history: Any) -> None: ...

    history = optimizer.minimize(x, y, max_iter=20, callbacks=[Ends()])
    return [history[-1].step, history.stop_reason]


def main() -> None:
    folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    group = Processes()
    found: dict[str, Any] = {
        "comparisons": comparisons(group),
        "refusals": refusals(group),
        "resumed": resumed(group),
        "covariance": covariance(group),
        "minimized": minimized(group),
    }
    members = dist.new_group([0, 1])
    if rank < 2:
        pair = Processes(members)
        found["pair"] = comparisons(pair, few=True)
        # Where the models are elsewhere, what the processes send goes by way of the host.
        with Watched():
            found["pair"] += comparisons(pair, few=True, place=DEVICE)
        found["stalled"] = stalled(pair)
    found["stopped"] = stopped(group)
    with open(f"{folder}/found-{rank}.json", "w", encoding="utf-8") as file:
        json.dump(found, file)
    os._exit(0)


if __name__ == "__main__":
    main()
