"""Plain values by the types declared for them: what fits comes through, the rest is refused by its place."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefit.records import FileError, array, offsets, read


class Color(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must be at least 0")


@dataclass
class Outer:
    inner: list[Inner]
    name: str | None
    pairs: tuple[tuple[str, int], ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    color: Color = Color.RED
    mode: Literal["a", "b"] = "a"
    flag: bool = False


PLAIN = {
    "inner": [{"count": 3, "share": 1}],
    "name": None,
    "pairs": [["x", 1]],
    "numbers": {"y": 2},
    "color": "red",
    "mode": "b",
    "flag": True,
}


def test_a_record_becomes_what_it_was() -> None:
    found = read(Outer, PLAIN, "it")
    assert found == Outer([Inner(3, 1.0)], None, (("x", 1),), {"y": 2.0}, Color.RED, "b", True)
    assert isinstance(found.inner[0].share, float)
    assert read(Outer, asdict(found), "it") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": None}, "it.inner must be"),
        ({"inner": [{}]}, "it.inner[0] lacks 'count'"),
        ({"inner": [{"count": 1, "more": 2}]}, "it.inner[0] has a field 'more'"),
        ({"inner": [{"count": True}]}, "it.inner[0].count must be int"),
        ({"inner": [{"count": -1}]}, "it.inner[0]: count must be at least 0"),
        ({"inner": [{"count": 2**80}]}, "it.inner[0].count must be int"),
        ({"inner": [{"count": 1, "share": "half"}]}, "it.inner[0].share must be float"),
        ({"name": 1}, "it.name must be"),
        ({"pairs": [["x"]]}, "it.pairs[0] must be tuple[str, int]"),
        ({"pairs": [["x", 1.5]]}, "it.pairs[0][1] must be int"),
        ({"numbers": [1]}, "it.numbers must be dict[str, float]"),
        ({"numbers": {"y": None}}, "it.numbers.y must be float"),
        ({"color": "blue"}, "it.color must be Color"),
        ({"color": [1]}, "it.color must be Color"),
        ({"mode": "c"}, "it.mode must be"),
        ({"mode": {}}, "it.mode must be"),
        ({"flag": 1}, "it.flag must be bool"),
    ],
)
def test_everything_else_is_refused_by_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError) as caught:
        read(Outer, PLAIN | change, "it")
    assert str(caught.value).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(JSON, st.sampled_from(sorted(PLAIN)))
def test_any_value_is_read_or_refused(value: Any, name: str) -> None:
    try:
        found = read(Outer, PLAIN | {name: value}, "it")
    except FileError:
        return
    assert isinstance(found, Outer)
    assert read(Outer, asdict(found), "it") == found


def test_arrays_have_the_shape_and_dtype_declared_for_them() -> None:
    found = {"a": np.array([[0, 1], [2, 3]], np.int32), "scalar": np.array(2.5), "start": np.array([0, 2, 2, 5])}
    assert array(found, "a", np.int32, (2, None), least=0, below=4) is found["a"]
    assert array(found, "scalar", (np.float32, np.float64), ()).shape == ()
    for settings, message in {
        ("a", np.int64, (2, 2)): "'a' must be of int64, it is of int32",
        ("a", np.int32, (4,)): r"'a' must have shape \(4\), it has \(2, 2\)",
        ("a", np.int32, (3, None)): r"'a' must have shape \(3, any\)",
        ("b", np.int32, (2, 2)): "there is no array 'b'",
    }.items():
        with pytest.raises(FileError, match=message):
            array(found, *settings)
    with pytest.raises(FileError, match="'a' must be at least 1 everywhere, it holds 0"):
        array(found, "a", np.int32, (2, 2), least=1)
    with pytest.raises(FileError, match="'a' must be below 3 everywhere, it holds 3"):
        array(found, "a", np.int32, (2, 2), below=3)


def test_offsets_ascend_from_0_to_the_end() -> None:
    found = {"start": np.array([0, 2, 2, 5]), "down": np.array([0, 3, 2, 5]), "late": np.array([1, 2, 2, 5])}
    assert offsets(found, "start", np.int64, 3, 5) is found["start"]
    for name, total in {"down": 5, "late": 5, "start": 6}.items():
        with pytest.raises(FileError, match=f"'{name}' must ascend from 0 to {total}"):
            offsets(found, name, np.int64, 3, total)
