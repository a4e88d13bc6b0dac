"""Jets: a value with derivatives along some directions, in one forward pass.

A jet goes through a network in place of a point. Every operation that it meets either has a rule here or ends the
attempt, and the derivatives are then taken by torch's own transforms: the same numbers, several times slower.
(Taylor series: Griewank and Walther, Evaluating Derivatives, 2008, chapter 13; the sum of second derivatives alone,
forward Laplacian: Li et al., arXiv 2307.08214; for any network made of the operations below.)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice, repeat
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, vmap
from torch.nn import functional

Rule = Callable[..., Any]


class UnsupportedError(Exception):
    """An operation without a rule for jets."""


@dataclass(frozen=True)
class Kind:
    """Rows of a jet.

    Attributes
    ----------
    orders
        Order to which the Taylor series along each direction is known, 1 … 4, the highest first.
    summed
        Whether the sum of the second derivatives along all directions follows; the orders are then 1.
    """

    orders: tuple[int, ...]
    summed: bool = False

    @property
    def sizes(self) -> list[int]:
        """Number of directions that have a coefficient of order 1, 2, …"""
        return [sum(order >= k for order in self.orders) for k in range(1, max(self.orders, default=0) + 1)]


class Jet:
    """Stand-in for a tensor of some shape.

    Parameters
    ----------
    rows
        The value, then the Taylor coefficients ∂ᵏ/k! of order 1 along all directions, of order 2 along those that go so
        far, …, and the sum of the second derivatives where there is one: shape (R, *shape).
    kind
        Meaning of the rows.
    """

    __slots__ = ("kind", "rows")
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, rows: Tensor, kind: Kind):
        self.rows = rows
        self.kind = kind

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

    def series(self) -> list[Tensor]:
        """Value (1, …), then the coefficients of every order (D, …)."""
        sizes = self.kind.sizes
        return list(self.rows[: 1 + sum(sizes)].split([1, *sizes]))

    def sum_of_seconds(self) -> Tensor:
        """Sum of the second derivatives, (1, …)."""
        return self.rows[-1:]

    def spread(self, ndim: int) -> "Jet":
        """The same with leading dimensions of one, up to `ndim`."""
        if ndim <= self.ndim:
            return self
        return Jet(self.rows.reshape(len(self.rows), *(1,) * (ndim - self.ndim), *self.shape), self.kind)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator["Jet"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "Jet":
        return Jet(self.rows[(slice(None), *(index if isinstance(index, tuple) else (index,)))], self.kind)

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
        return Jet(-self.rows, self.kind)

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
    network: Callable[[Any], Any], point: Float[Tensor, " d"], directions: Float[Tensor, "D d"], kind: Kind
) -> Jet | None:
    """The network's jet at a point; None where something in it has no rule."""
    higher = sum(kind.sizes[1:]) + kind.summed
    rows = torch.cat([point[None], directions, torch.zeros_like(point).expand(higher, -1)])
    try:
        found = network(Jet(rows, kind))
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
    return Jet(torch.cat([value, rest.expand(len(rest), *value.shape[1:])]), a.kind)


def subtract(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    return add(a, -b, alpha=alpha)


def multiply(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.spread(b.ndim if isinstance(b, Tensor) else 0).rows * b, a.kind)
    kind = _common(a, b)
    ndim = max(a.ndim, b.ndim)
    a, b = a.spread(ndim), b.spread(ndim)
    u, v = a.series(), b.series()
    rows = [u[0] * v[0]]
    for order, along in enumerate(kind.sizes, start=1):
        inner = (u[k][:along] * v[order - k][:along] for k in range(1, order))
        rows.append(sum(inner, u[0] * v[order] + u[order] * v[0]))
    if kind.summed:
        twice = 2 * (u[1] * v[1]).sum(dim=0, keepdim=True)
        rows.append(u[0] * b.sum_of_seconds() + v[0] * a.sum_of_seconds() + twice)
    return Jet(torch.cat(rows), kind)


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
    return Jet(rows, given.kind)


def matrix_product(a: Any, b: Any) -> Jet:
    if isinstance(a, Jet) and isinstance(b, Jet):
        raise UnsupportedError("a product of two jets of matrices")
    if isinstance(a, Jet):
        return Jet(vmap(torch.matmul, in_dims=(0, None))(a.rows, b), a.kind)
    return Jet(vmap(torch.matmul, in_dims=(None, 0))(a, b.rows), b.kind)


def join(function: Callable[..., Tensor], pieces: Any, dim: int = 0) -> Jet:
    jets = [piece for piece in pieces if isinstance(piece, Jet)]
    first = jets[0]
    for jet in jets:
        _common(first, jet)
    rows = [piece.rows if isinstance(piece, Jet) else _constant(piece, first) for piece in pieces]
    return Jet(vmap(lambda *parts: function(parts, dim=dim))(*rows), first.kind)


def _constant(tensor: Tensor, like: Jet) -> Tensor:
    rest = torch.zeros_like(tensor)[None]
    return torch.cat([tensor[None], rest.expand(len(like.rows) - 1, *tensor.shape)])


def _common(a: Jet, b: Jet) -> Kind:
    if a.kind != b.kind:
        raise UnsupportedError("jets of different kinds in one operation")
    return a.kind


def _linear_rule(function: Callable[..., Tensor], jet: Any, *args: Any, **options: Any) -> Jet:
    """For functions that are linear in their first argument and take no other jet."""
    if not isinstance(jet, Jet) or any(isinstance(value, Jet) for value in (*args, *options.values())):
        raise UnsupportedError(function.__name__)
    return Jet(vmap(lambda row: function(row, *args, **options))(jet.rows), jet.kind)


def _elementwise(derivatives: Callable[..., Iterator[Tensor | float]], jet: Any, **options: Any) -> Jet:
    """φ of a jet, by Faà di Bruno's formula; `derivatives` yields φ, φ′, φ″, … at a value."""
    if options.pop("inplace", False):
        raise UnsupportedError("an operation in place")
    kind, series = jet.kind, jet.series()
    order = max(len(kind.sizes), 2 if kind.summed else 0)
    slopes = list(islice(derivatives(series[0], **options), order + 1))
    scaled = [slope / math.factorial(k) if k > 1 else slope for k, slope in enumerate(slopes)]
    rows: list[Any] = [scaled[0]]
    for k, along in enumerate(kind.sizes, start=1):
        c = [coefficient[:along] for coefficient in series[: k + 1]]
        rows.append(_coefficient(k, scaled, c))
    if kind.summed:
        rows.append(slopes[1] * jet.sum_of_seconds() + slopes[2] * series[1].square().sum(dim=0, keepdim=True))
    return Jet(torch.cat(rows), kind)


def _coefficient(order: int, f: list[Any], c: list[Tensor]) -> Tensor:
    """The Taylor coefficient of φ(Σ cₖ hᵏ) in h^order, from f_k = φ⁽ᵏ⁾/k!."""
    if order == 1:
        return f[1] * c[1]
    square = c[1] * c[1]
    if order == 2:
        return f[1] * c[2] + f[2] * square
    if order == 3:
        return f[1] * c[3] + c[1] * (2 * f[2] * c[2] + f[3] * square)
    if order == 4:
        return f[1] * c[4] + f[2] * (2 * c[1] * c[3] + c[2] * c[2]) + square * (3 * f[3] * c[2] + f[4] * square)
    raise UnsupportedError(f"a derivative of order {order}")


# Every function below yields φ, φ′, …, φ⁗ at v; what is not asked for is not computed.
def _tanh(v: Tensor) -> Iterator[Tensor]:
    t = torch.tanh(v)
    yield t
    slope = 1 - t * t
    yield slope
    yield -2 * t * slope
    yield slope * (6 * t * t - 2)
    yield t * slope * (16 - 24 * t * t)


def _sigmoid(v: Tensor) -> Iterator[Tensor]:
    s = torch.sigmoid(v)
    yield s
    slope = s * (1 - s)
    yield slope
    yield slope * (1 - 2 * s)
    yield slope * (1 - 6 * slope)
    yield slope * (1 - 2 * s) * (1 - 12 * slope)


def _silu(v: Tensor) -> Iterator[Tensor]:
    before = torch.zeros_like(v)
    for k, s in enumerate(_sigmoid(v)):
        yield v * s + k * before
        before = s


def _softplus(v: Tensor, beta: float = 1, threshold: float = 20) -> Iterator[Tensor]:
    yield functional.softplus(v, beta, threshold)
    straight = beta * v > threshold
    for k, s in enumerate(_sigmoid(beta * v)):
        yield torch.where(straight, 0.0 if k else 1.0, beta**k * s)


def _gelu(v: Tensor, approximate: str = "none") -> Iterator[Tensor]:
    if approximate != "none":
        raise UnsupportedError("the approximate gelu")
    below = 0.5 * (1 + torch.erf(v / math.sqrt(2)))
    yield v * below
    density = torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)
    yield below + v * density
    square = v * v
    yield (2 - square) * density
    yield v * (square - 4) * density
    yield (square * (7 - square) - 4) * density


def _erf(v: Tensor) -> Iterator[Tensor]:
    yield torch.erf(v)
    slope = torch.exp(-v * v) * (2 / math.sqrt(math.pi))
    square = v * v
    yield slope
    yield -2 * v * slope
    yield (4 * square - 2) * slope
    yield v * (12 - 8 * square) * slope


def _relu(v: Tensor) -> Iterator[Tensor | float]:
    yield torch.relu(v)
    yield (v > 0).to(v)
    yield from repeat(0.0)


def _sin(v: Tensor) -> Iterator[Tensor]:
    s, c = torch.sin(v), torch.cos(v)
    yield from cycle((s, c, -s, -c))


def _cos(v: Tensor) -> Iterator[Tensor]:
    s, c = torch.sin(v), torch.cos(v)
    yield from cycle((c, -s, -c, s))


def _sinh(v: Tensor) -> Iterator[Tensor]:
    yield from cycle((torch.sinh(v), torch.cosh(v)))


def _cosh(v: Tensor) -> Iterator[Tensor]:
    yield from cycle((torch.cosh(v), torch.sinh(v)))


def _exp(v: Tensor) -> Iterator[Tensor]:
    yield from repeat(torch.exp(v))


def _log(v: Tensor) -> Iterator[Tensor]:
    yield torch.log(v)
    yield from _reciprocal(v)


def _sqrt(v: Tensor) -> Iterator[Tensor]:
    here = torch.sqrt(v)
    for k in count():
        yield here
        here = (0.5 - k) * here / v


def _reciprocal(v: Tensor) -> Iterator[Tensor]:
    here = inverse = 1 / v
    for k in count(1):
        yield here
        here = -k * here * inverse


def _square(v: Tensor) -> Iterator[Tensor]:
    return _power(v, 2)


def _power(v: Tensor, exponent: float) -> Iterator[Tensor]:
    factor: float = 1
    for k in count():
        # Powers of 0 below the first would be infinite where the factor is 0.
        yield factor * v ** (exponent - k) if factor else torch.zeros_like(v)
        factor *= exponent - k


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
        "sin": _sin, "cos": _cos, "sinh": _sinh, "cosh": _cosh,
        "erf": _erf, "exp": _exp, "log": _log, "sqrt": _sqrt, "reciprocal": _reciprocal, "square": _square,
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
