"""A process group of torch.distributed: sums, agreements, and errors that reach everyone."""

import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from widefit.processes.alone import ALONE, Alone, Result

# Seconds after which a process that does not answer is given up.
_TIMEOUT = 60.0


class ProcessError(RuntimeError):
    """Another process has failed, ended or stopped answering."""


class Processes(Alone):
    """The processes of a group, each with its own share of the data.

    Results are the same to the last bit on every process, so that all of them take the same decisions.

    Parameters
    ----------
    group
        A group of torch.distributed; None: all processes.
    timeout
        Seconds after which a process that does not answer is given up: more than any of them works by itself.

    Raises
    ------
    ValueError
        torch.distributed is not initialized, or the group is without this process.
    """

    def __init__(self, group: Any = None, timeout: float = _TIMEOUT):
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "several processes need torch.distributed: start them with torchrun, and call "
                'torch.distributed.init_process_group("gloo") in each'
            )
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, got {timeout}")
        self._group = dist.group.WORLD if group is None else group
        self.rank = dist.get_rank(self._group)
        if self.rank < 0:
            raise ValueError("process_group is without this process: make the optimizer on its members alone")
        self.size = dist.get_world_size(self._group)
        self.timeout = timeout
        self._backends = backends_of(str(dist.get_backend_config(self._group)))
        self.neighbours = self.gathered(socket.gethostname()).count(socket.gethostname())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Processes":
        return self

    def meet(self) -> None:
        if set(self._backends.values()) != {"gloo"}:
            self.any(False)
            return
        wait = timedelta(seconds=self.timeout)
        with self._answering():
            dist.monitored_barrier(self._group, timeout=wait, wait_all_ranks=True)

    def attempt(self, work: Callable[[], Result]) -> Result:
        failure, result = None, None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others have to hear of it
            failure = error
        if not self.any(failure is not None):
            return result  # pyright: ignore[reportReturnType]
        told = self.gathered(None if failure is None else (isinstance(failure, ValueError), str(failure)))
        if failure is not None:
            raise failure
        rank, (plain, message) = next((rank, found) for rank, found in enumerate(told) if found is not None)
        raise (ValueError if plain else ProcessError)(f"process {rank}: {message}")

    def sum(self, tensor: Tensor) -> Tensor:
        total = self._placed(tensor)
        self._wait(lambda: dist.all_reduce(total, group=self._group, async_op=True))
        return total.to(tensor.device)

    def sum_at(self, tensor: Tensor, rank: int) -> Tensor | None:
        total = self._placed(tensor)
        self._wait(lambda: dist.reduce(total, group=self._group, group_dst=rank, async_op=True))
        return total.to(tensor.device) if rank == self.rank else None

    def spread(self, tensor: Tensor, rank: int) -> None:
        if self._taken(tensor):
            self._wait(lambda: dist.broadcast(tensor, group=self._group, group_src=rank, async_op=True))
        else:
            tensor.copy_(self.same(tensor, rank))

    def same(self, tensor: Tensor, rank: int = 0) -> Tensor:
        found = self._placed(tensor)
        self._wait(lambda: dist.broadcast(found, group=self._group, group_src=rank, async_op=True))
        return found.to(tensor.device)

    def joined(self, rows: Shaped[Tensor, "n *c"], at: int | None = None) -> Shaped[Tensor, "N *c"]:
        counts = self._counts(len(rows))
        padded = self._placed(rows.new_zeros(max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        here = at in (None, self.rank)
        pieces = [torch.empty_like(padded) for _ in counts] if here else []
        if at is None:
            self._wait(lambda: dist.all_gather(pieces, padded, group=self._group, async_op=True))
        else:
            target = pieces or None
            self._wait(lambda: dist.gather(padded, target, group=self._group, group_dst=at, async_op=True))
        if not here:
            return rows[:0]
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)]).to(rows.device)

    def gathered(self, item: Any) -> list[Any]:
        own = torch.frombuffer(bytearray(pickle.dumps(item)), dtype=torch.uint8)
        counts = self._counts(len(own))
        return [pickle.loads(piece.numpy().tobytes()) for piece in self.joined(own).split(counts)]

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor([float(flag)])) > 0)

    def norm(self, rows: Float[Tensor, " n"]) -> float:
        return float(self.sum(torch.linalg.vector_norm(rows, dtype=torch.float64).square()[None])) ** 0.5

    def length(self, rows: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        return torch.tensor(self.norm(rows), dtype=torch.float64, device=rows.device)

    def dot(self, left: Float[Tensor, " n"], right: Float[Tensor, " n"]) -> float:
        return float(self.sum(torch.dot(left.double(), right.double())[None]))

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        return self.products(*pairs).tolist()

    def products(self, *pairs: tuple[Tensor, Tensor]) -> Float[Tensor, " pairs"]:
        return self.sum(torch.stack([torch.dot(left.double(), right.double()) for left, right in pairs]))

    def _counts(self, count: int) -> list[int]:
        places = torch.zeros(self.size, dtype=torch.int64)
        places[self.rank] = count
        return self.sum(places).tolist()

    def _placed(self, tensor: Tensor) -> Tensor:
        """A copy, contiguous, where the group can take it."""
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        return copy if self._taken(tensor) else copy.to(place_for(self._backends, tensor.device.type))

    def _taken(self, tensor: Tensor) -> bool:
        """Whether the group takes a tensor as it lies."""
        return tensor.device.type == place_for(self._backends, tensor.device.type)

    def _wait(self, begin: Callable[[], Any]) -> None:
        """Begin an operation in which all take part, and wait until it is done."""
        with self._answering():
            begin().wait(timedelta(seconds=self.timeout))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ProcessError(
                f"process {self.rank} of {self.size} gave up waiting for another one, which has ended, or has not "
                f"answered for {self.timeout:g} seconds; its own output says why ({str(error).splitlines()[0]})"
            ) from error


def backends_of(config: str) -> dict[str, str]:
    """Return the backend of every type of device, from what torch.distributed says of a group."""
    return dict(part.split(":", 1) for part in config.split(",") if ":" in part)


def place_for(backends: dict[str, str], device: str) -> str:
    """Return the type of device from which a group takes what lies on another.

    NCCL takes nothing that lies in the memory of the processor, gloo not everything that lies elsewhere.
    """
    if device in backends and (device == "cpu" or backends[device] != "gloo"):
        return device
    return "cpu" if "cpu" in backends else next(iter(backends))


def as_processes(group: Any) -> Alone:
    """The processes of a group of torch.distributed, or of a `Processes`; None: this one by itself."""
    if group is None:
        return ALONE
    return group if isinstance(group, Alone) else Processes(group)
