"""Jets: a value with its first derivatives along some directions and the sum of its second ones, in one forward pass.

A jet goes through a network in place of a point. Every operation that it meets either has a rule here or ends the
attempt, and the derivatives are then taken by torch's own transforms: the same numbers, several times slower.
(Forward Laplacian: Li et al., arXiv 2307.08214, for any network made of the operations below.)
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, vmap
from torch.nn import functional

Rule = Callable[..., Any]


class UnsupportedError(Exception):
    """An operation without a rule for jets."""


class Jet:
    """Stand-in for a tensor of some shape.

    Parameters
    ----------
    rows
        Shape (1 + D (+ 1), *shape): the value, its D first derivatives, and the sum of its D second derivatives.
    second
        Whether that last row is there.
    """

    __slots__ = ("rows", "second")
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, rows: Tensor, second: bool):
        self.rows = rows
        self.second = second

    @property
    def shape(self) -> torch.Size:
        return self.rows.shape[1:]

    @property
    def ndim(self) -> int:
        return self.rows.ndim - 1

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.shape.numel()

    def split_rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value (1, …), first derivatives (D, …), sum of the second ones (1, …)."""
        if not self.second:
            value, first = self.rows.split([1, len(self.rows) - 1])
            return value, first, None
        value, first, second = self.rows.split([1, len(self.rows) - 2, 1])
        return value, first, second

    def spread(self, ndim: int) -> "Jet":
        """The same with leading dimensions of one, up to `ndim`."""
        if ndim <= self.ndim:
            return self
        return Jet(self.rows.reshape(len(self.rows), *(1,) * (ndim - self.ndim), *self.shape), self.second)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator["Jet"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "Jet":
        return Jet(self.rows[(slice(None), *(index if isinstance(index, tuple) else (index,)))], self.second)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        rule = RULES.get(getattr(Tensor, name, None))
        if rule is None:
            raise AttributeError(f"a jet has no rule for {name}")
        return partial(rule, self)

    def __bool__(self) -> bool:
        raise UnsupportedError("the truth of a jet")

    def __eq__(self, other: object) -> bool:
        raise UnsupportedError("a comparison of jets")

    def __neg__(self) -> "Jet":
        return Jet(-self.rows, self.second)

    def __add__(self, other: Any) -> "Jet":
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Jet":
        return add(self, -other)

    def __rsub__(self, other: Any) -> "Jet":
        return add(-self, other)

    def __mul__(self, other: Any) -> "Jet":
        return multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Jet":
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> "Jet":
        return divide(other, self)

    def __pow__(self, exponent: Any) -> "Jet":
        return power(self, exponent)

    def __matmul__(self, other: Any) -> "Jet":
        return matrix_product(self, other)

    def __rmatmul__(self, other: Any) -> "Jet":
        return matrix_product(other, self)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        rule = RULES.get(function)
        if rule is None:
            raise UnsupportedError(getattr(function, "__name__", str(function)))
        return rule(*args, **(kwargs or {}))


def propagate(
    network: Callable[[Any], Any], point: Float[Tensor, " d"], directions: Float[Tensor, "D d"], second: bool
) -> Jet | None:
    """The network's jet at a point; None where something in it has no rule."""
    rows = [point[None], directions, torch.zeros_like(point)[None]]
    try:
        found = network(Jet(torch.cat(rows if second else rows[:2]), second))
    except Exception:
        # A network may refuse a jet in any way it likes: torch's transforms then answer, or raise what is wrong.
        return None
    return found if isinstance(found, Jet) else None


def add(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    if alpha != 1:
        b = alpha * b
    if not isinstance(a, Jet):
        a, b = b, a
    if isinstance(b, Jet):
        ndim = max(a.ndim, b.ndim)
        return Jet(a.spread(ndim).rows + b.spread(ndim).rows, _common(a, b))
    a = a.spread(b.ndim if isinstance(b, Tensor) else 0)
    value = a.rows[:1] + b
    rest = a.rows[1:]
    return Jet(torch.cat([value, rest.expand(len(rest), *value.shape[1:])]), a.second)


def subtract(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    return add(a, -b, alpha=alpha)


def multiply(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.spread(b.ndim if isinstance(b, Tensor) else 0).rows * b, a.second)
    second = _common(a, b)
    ndim = max(a.ndim, b.ndim)
    (u, du, ddu), (v, dv, ddv) = a.spread(ndim).split_rows(), b.spread(ndim).split_rows()
    rows = [u * v, u * dv + v * du]
    if ddu is not None and ddv is not None:
        rows.append(u * ddv + v * ddu + 2 * (du * dv).sum(dim=0, keepdim=True))
    return Jet(torch.cat(rows), second)


def divide(a: Any, b: Any, *, rounding_mode: None = None) -> Jet:
    if rounding_mode is not None:
        raise UnsupportedError("a rounded quotient")
    return multiply(a, 1 / b if not isinstance(b, Jet) else _elementwise(_reciprocal, b))


def power(a: Any, exponent: Any) -> Jet:
    if not isinstance(a, Jet) or not isinstance(exponent, int | float):
        raise UnsupportedError("a power that is not a number")
    if exponent == 1:
        return a
    return _elementwise(partial(_power, exponent=exponent), a)


def linear(given: Any, weight: Tensor, bias: Tensor | None = None) -> Jet:
    if not isinstance(given, Jet) or isinstance(weight, Jet) or isinstance(bias, Jet):
        raise UnsupportedError("a layer whose weight is a jet")
    rows = functional.linear(given.rows, weight)
    if bias is not None:
        only_value = torch.zeros(len(rows), *(1,) * given.ndim, dtype=rows.dtype, device=rows.device)
        only_value[0] = 1
        rows = rows + only_value * bias
    return Jet(rows, given.second)


def matrix_product(a: Any, b: Any) -> Jet:
    if isinstance(a, Jet) and isinstance(b, Jet):
        raise UnsupportedError("a product of two jets of matrices")
    if isinstance(a, Jet):
        return Jet(vmap(torch.matmul, in_dims=(0, None))(a.rows, b), a.second)
    return Jet(vmap(torch.matmul, in_dims=(None, 0))(a, b.rows), b.second)


def join(function: Callable[..., Tensor], pieces: Any, dim: int = 0) -> Jet:
    jets = [piece for piece in pieces if isinstance(piece, Jet)]
    first = jets[0]
    second = all(_common(first, jet) for jet in jets) and first.second
    rows = [piece.rows if isinstance(piece, Jet) else _constant(piece, first) for piece in pieces]
    return Jet(vmap(lambda *parts: function(parts, dim=dim))(*rows), second)


def _constant(tensor: Tensor, like: Jet) -> Tensor:
    rest = torch.zeros_like(tensor)[None]
    return torch.cat([tensor[None], rest.expand(len(like.rows) - 1, *tensor.shape)])


def _common(a: Jet, b: Jet) -> bool:
    if a.second != b.second or len(a.rows) != len(b.rows):
        raise UnsupportedError("jets of different kinds in one operation")
    return a.second


def _linear_rule(function: Callable[..., Tensor], jet: Any, *args: Any, **options: Any) -> Jet:
    """For functions that are linear in their first argument and take no other jet."""
    if not isinstance(jet, Jet) or any(isinstance(value, Jet) for value in (*args, *options.values())):
        raise UnsupportedError(function.__name__)
    return Jet(vmap(lambda row: function(row, *args, **options))(jet.rows), jet.second)


def _elementwise(derivatives: Callable[..., tuple[Tensor, Tensor, Tensor | float]], jet: Any, **options: Any) -> Jet:
    """φ(v), φ′ ∂v and φ′ Σ∂²v + φ″ Σ(∂v)²; `derivatives` gives φ, φ′ and φ″."""
    if options.pop("inplace", False):
        raise UnsupportedError("an operation in place")
    value, first, second = jet.split_rows()
    here, slope, bend = derivatives(value, **options)
    rows = [here, slope * first]
    if second is not None:
        rows.append(slope * second + bend * first.square().sum(dim=0, keepdim=True))
    return Jet(torch.cat(rows), jet.second)


def _tanh(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.tanh(v)
    slope = 1 - t * t
    return t, slope, -2 * t * slope


def _sigmoid(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(v)
    slope = s * (1 - s)
    return s, slope, slope * (1 - 2 * s)


def _silu(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s, slope, bend = _sigmoid(v)
    return v * s, s + v * slope, 2 * slope + v * bend


def _softplus(v: Tensor, beta: float = 1, threshold: float = 20) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(beta * v)
    straight = beta * v > threshold
    bend = torch.where(straight, 0.0, beta * s * (1 - s))
    return functional.softplus(v, beta, threshold), torch.where(straight, 1.0, s), bend


def _gelu(v: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor, Tensor]:
    if approximate != "none":
        raise UnsupportedError("the approximate gelu")
    density = torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(v / math.sqrt(2)))
    return v * below, below + v * density, (2 - v * v) * density


def _relu(v: Tensor) -> tuple[Tensor, Tensor, float]:
    return torch.relu(v), (v > 0).to(v), 0.0


def _sin(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sin(v)
    return s, torch.cos(v), -s


def _cos(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    c = torch.cos(v)
    return c, -torch.sin(v), -c


def _exp(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    e = torch.exp(v)
    return e, e, e


def _log(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = 1 / v
    return torch.log(v), inverse, -inverse * inverse


def _sqrt(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = torch.sqrt(v)
    return root, 0.5 / root, -0.25 / (v * root)


def _reciprocal(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = 1 / v
    square = inverse * inverse
    return inverse, -square, 2 * square * inverse


def _square(v: Tensor) -> tuple[Tensor, Tensor, float]:
    return v * v, 2 * v, 2.0


def _power(v: Tensor, exponent: float) -> tuple[Tensor, Tensor, Tensor]:
    bend = torch.zeros_like(v) if exponent in (0, 1) else exponent * (exponent - 1) * v ** (exponent - 2)
    slope = torch.zeros_like(v) if exponent == 0 else exponent * v ** (exponent - 1)
    return v**exponent, slope, bend


def _rules() -> dict[Any, Rule]:
    """Every name under which torch knows an operation, with its rule."""
    named: dict[str, Rule] = {
        "add": add, "__add__": add, "__radd__": add, "sub": subtract, "subtract": subtract, "__sub__": subtract,
        "__rsub__": lambda a, b: subtract(b, a), "rsub": lambda a, b, *, alpha=1: subtract(b, a, alpha=alpha),
        "mul": multiply, "multiply": multiply, "__mul__": multiply, "__rmul__": multiply,
        "div": divide, "divide": divide, "true_divide": divide, "__truediv__": divide,
        "__rtruediv__": lambda a, b: divide(b, a),
        "neg": lambda a: -a, "pow": power, "__pow__": power, "linear": linear,
        "matmul": matrix_product, "__matmul__": matrix_product, "__rmatmul__": lambda a, b: matrix_product(b, a),
        "__getitem__": lambda jet, index: jet[index],
    }  # fmt: skip
    for name, derivatives in {
        "tanh": _tanh, "sigmoid": _sigmoid, "silu": _silu, "softplus": _softplus, "gelu": _gelu, "relu": _relu,
        "sin": _sin, "cos": _cos, "exp": _exp, "log": _log, "sqrt": _sqrt, "reciprocal": _reciprocal, "square": _square,
    }.items():  # fmt: skip
        named[name] = partial(_elementwise, derivatives)
    rules: dict[Any, Rule] = {}
    for owner in (torch, Tensor, functional):
        rules |= {getattr(owner, name): rule for name, rule in named.items() if hasattr(owner, name)}
        for name in ("sum", "mean", "reshape", "view", "flatten", "squeeze", "unsqueeze", "transpose", "movedim"):
            if function := getattr(owner, name, None):
                rules[function] = partial(_linear_rule, function)
        for name in ("cat", "concat", "concatenate", "stack"):
            if function := getattr(owner, name, None):
                rules[function] = partial(join, function)
    return rules


RULES = _rules()
