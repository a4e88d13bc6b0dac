"""The parts that an estimator is kept in, checked against one another when they come from a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from widefit.kernels.memory import available_memory
from widefit.linalg.gaussian_rows import Initial
from widefit.losses.family import rule_loss
from widefit.plan.two_layer import Plan
from widefit.records import FileError, read
from widefit.training.history import History

Labels = list[str] | list[bool] | list[int] | list[float]

_FLOATS = (torch.float32, torch.float64)
# Bytes of a label at most: what it claims is allocated for every class.
_LONGEST_LABEL = 1 << 16
# Kinds of arrays that hold labels of a type.
_KINDS = {str: "UO", bool: "bO", int: "iuO", float: "fO"}


@dataclass(frozen=True)
class Record:
    """The document of an estimator, as `Wide.to_parts` gives it."""

    estimator: str
    parameters: dict[str, Any]
    network: dict[str, Any]
    sphere_constant: float
    alpha: float
    ridge: float
    history: History
    plan: Plan
    n_features_in: int
    feature_names_in: list[str] | None
    loss: str = "squared"
    loss_ridge: float = 1.0
    loss_center: list[float] | None = None
    tuning_mean: list[float] | None = None
    smearing: list[float] | None = None
    seed: int = 0
    stream: dict[str, Any] | None = None
    flat: bool | None = None
    classes: Labels | None = None
    class_dtype: str | None = None
    sharpness: float | None = None
    offset: list[float] | None = None
    samples: int | None = None
    encoding: dict[str, Any] | None = None
    # Settings of the rule in version 0.1.
    sgd: dict[str, Any] | None = None


@dataclass(frozen=True)
class _StreamRecord:
    """State from which a stream goes on."""

    memory: dict[str, float]
    recorder: dict[str, Any]


@dataclass(frozen=True)
class _Activation:
    """Settings of a two-layer network."""

    threshold: float
    convention: Literal["zero", "floor"] = "zero"
    drawn: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Layers:
    """Settings of a deep network."""

    thresholds: list[float]
    input_share: float


def check_parts(tensors: Mapping[str, Tensor], document: dict[str, Any], parameters: Mapping[str, Any]) -> None:
    """Check what an estimator is to be made from.

    Parameters
    ----------
    tensors, document
        From `Wide.to_parts`.
    parameters
        Those that the estimator has, by name.

    Raises
    ------
    FileError
        A field or a tensor that is absent, unknown, of another type or shape, or not finite.
    """
    record = read(Record, document, "its model")
    if not record.history.steps:
        raise FileError("its history has no steps")
    if unknown := sorted(record.parameters.keys() - parameters.keys()):
        raise FileError(f"{record.estimator} has no parameter {unknown[0]!r}")
    read(int | list[int] | Literal["auto"], record.parameters.get("hidden_layer_sizes", 1), "hidden_layer_sizes")
    features, outputs = _check_network(tensors, record.network)
    _check_input_map(tensors, record, features)
    for name in ("target_mean", "target_scale"):
        _check(tensors, name, (torch.float64,), (outputs,))
    if record.estimator == "WideClassifier":
        _check_classes(record, outputs)
    elif record.flat is None or (record.flat and outputs != 1):
        raise FileError("its outputs are not those of its targets")
    _check_loss(record, outputs)
    if record.stream is not None:
        _check_stream(tensors, read(_StreamRecord, record.stream, "its stream"))


def _check(tensors: Mapping[str, Tensor], name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise FileError(f"there is no tensor {name!r}")
    given = tensors[name]
    if given.dtype not in dtypes or tuple(given.shape) != shape:
        wanted = f"{' or '.join(map(str, dtypes))} of shape {shape}"
        raise FileError(f"{name!r} must be {wanted}, it is {given.dtype} of shape {tuple(given.shape)}")
    if not torch.isfinite(given).all():
        raise FileError(f"{name!r} holds NaN or infinity")


def _size(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """The shape of a matrix."""
    if name not in tensors or tensors[name].ndim != 2 or not all(tensors[name].shape):
        raise FileError(f"there is no matrix {name!r}")
    rows, columns = tensors[name].shape
    return rows, columns


def _check_network(tensors: Mapping[str, Tensor], record: dict[str, Any]) -> tuple[int, int]:
    """Features and outputs of the network."""
    if "thresholds" in record:
        return _check_deep(tensors, read(_Layers, record, "its network"))
    activation = read(_Activation, record, "its network")
    if not math.isfinite(activation.threshold):
        raise FileError(f"its network has the activation {activation}")
    width, features = _size(tensors, "weight")
    if activation.drawn is not None:
        initial = read(Initial, activation.drawn, "its network")
        _check_drawn(tensors, initial, width, features)
        return features, initial.out_features
    outputs = _size(tensors, "readout")[1]
    if outputs > width:
        raise FileError(f"its network has {width} neurons for {outputs} outputs")
    _check(tensors, "weight", _FLOATS, (width, features))
    _check(tensors, "readout", (tensors["weight"].dtype,), (width, outputs))
    return features, outputs


def _check_drawn(tensors: Mapping[str, Tensor], initial: Initial, stored: int, features: int) -> None:
    """Refuse a network that cannot be drawn again, but for the neurons that are stored."""
    width, outputs = initial.width, initial.out_features
    known = 0 <= initial.seed < 2**64 and initial.paired and 0 < initial.entry < math.inf
    if not known or not 1 <= outputs <= width // 2 or initial.in_features != features:
        raise FileError(f"its network cannot be drawn from {initial}")
    _check(tensors, "moved", (torch.bool,), (width,))
    if int(tensors["moved"].sum()) != stored:
        raise FileError(f"it has {stored} neurons, not those that have moved")
    _check(tensors, "weight", _FLOATS, (stored, features))
    needed = width * (features + outputs) * tensors["weight"].itemsize
    if needed > available_memory():
        raise FileError(f"its network takes {needed / 1e9:.3g} GB, and {available_memory() / 1e9:.3g} GB are free")


def _check_deep(tensors: Mapping[str, Tensor], layers: _Layers) -> tuple[int, int]:
    depth = len(layers.thresholds)
    if not 0 <= layers.input_share <= 1 or not depth or not np.isfinite(layers.thresholds).all():
        raise FileError(f"its network has the layers {layers}")
    features = _size(tensors, "network.input_weights.0")[1]
    outputs = _size(tensors, "network.readouts.0")[1]
    dtypes, below = (tensors["network.input_weights.0"].dtype,), 0
    if dtypes[0] not in _FLOATS:
        raise FileError(f"its weights are {dtypes[0]}")
    names = [name for name in tensors if name.startswith("network.")]
    fed = sum(name.startswith("network.input_weights.") for name in names)
    if fed not in (1, depth) or len(names) != fed + 2 * depth - 1:
        raise FileError(f"its network has {len(names)} tensors for {depth} layers")
    for layer in range(depth):
        width = _size(tensors, f"network.readouts.{layer}")[0]
        _check(tensors, f"network.readouts.{layer}", dtypes, (width, outputs))
        if layer < fed:
            _check(tensors, f"network.input_weights.{layer}", dtypes, (width, features))
        if layer > 0:
            _check(tensors, f"network.hidden.{layer - 1}.weight", dtypes, (width, below))
        below = width
    return features, outputs


def _check_input_map(tensors: Mapping[str, Tensor], record: Record, features: int) -> None:
    """From the columns of a table, of which constant ones are left out, to those of the network."""
    columns = record.n_features_in
    if columns < 1 or (record.feature_names_in is not None and len(record.feature_names_in) != columns):
        raise FileError(f"it has {columns} features, and other names for them")
    if record.encoding is not None:
        columns = _encoded_columns(record)
    columns += tensors["step_columns"].numel() if "step_columns" in tensors else 0
    for name in ("center", "scale"):
        _check(tensors, name, (torch.float64,), (columns,))
    mixed = columns
    if "mixing" in tensors:
        mixed = _size(tensors, "mixing")[-1]
        _check(tensors, "mixing", (torch.float64,), (columns, mixed))
    if not 0 < record.sphere_constant < math.inf:
        raise FileError(f"its constant is {record.sphere_constant}")
    if features != mixed + 1 or mixed > columns:
        raise FileError(f"its network has {features} features, its table {columns}, of which {mixed} are made")


def _check_loss(record: Record, outputs: int) -> None:
    try:
        rule_loss(record.loss)
    except ValueError as error:
        raise FileError(str(error)) from error
    if not 0 < record.loss_ridge < math.inf:
        raise FileError(f"the ridge of its loss is {record.loss_ridge}")
    for center in (record.loss_center, record.tuning_mean, record.smearing):
        if center is not None and (len(center) != outputs or not np.isfinite(center).all()):
            raise FileError(f"the means of its loss must be {outputs} finite numbers")


def _encoded_columns(record: Record) -> int:
    """The count of numbers that a row of the table becomes."""
    from widefit.data.features import FeatureEncoding

    encoding = FeatureEncoding.from_dict(record.encoding or {})
    names = [column.name for column in encoding.columns]
    known = record.feature_names_in or [f"x{place}" for place in range(record.n_features_in)]
    if names != known:
        raise FileError("its encoding has other columns than its table")
    return len(encoding.feature_names)


def _check_classes(record: Record, outputs: int) -> None:
    labels, dtype = record.classes or [], record.class_dtype or ""
    if outputs != (1 if len(labels) == 2 else len(labels)) or len(set(labels)) < max(2, len(labels)):
        raise FileError(f"it has {len(labels)} classes and {outputs} outputs")
    if record.sharpness is None or not math.isfinite(record.sharpness):
        raise FileError(f"its sharpness is {record.sharpness}")
    if record.offset is not None and (len(record.offset) != outputs or not np.isfinite(record.offset).all()):
        raise FileError(f"its offset must be {outputs} finite numbers")
    labels_array(labels, dtype)


def labels_array(labels: Labels, dtype: str) -> np.ndarray:
    """Return class labels as an array of the dtype that they were in.

    Raises
    ------
    FileError
        A dtype that does not hold them.
    """
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise FileError(f"there is no dtype {dtype[:40]!r}") from error
    fits = kind.kind in _KINDS[type(labels[0])] and kind.itemsize <= _LONGEST_LABEL
    if fits and kind.kind in "iu":
        bounds = np.iinfo(kind)
        fits = all(bounds.min <= int(label) <= bounds.max for label in labels)
    if not fits:
        raise FileError(f"its classes, such as {labels[0]!r}, are no {kind}")
    return np.array(labels, dtype=kind)


def _check_stream(tensors: Mapping[str, Tensor], record: _StreamRecord) -> None:
    memory = record.memory
    lacking = {"lr", "seen", "first"} - memory.keys()
    if lacking or not all(memory[name] >= 0 for name in ("lr", "seen")) or not memory["seen"] < 2**62:
        raise FileError("its stream does not say how far it has come")
    if not 0 <= memory.get("averaged", 0) < 2**62:
        raise FileError("its stream does not say how much it has averaged")
    own = {name for name in tensors if name.startswith("stream.")}
    if own:
        if "readout" not in tensors:
            raise FileError("its stream has more neurons than are stored")
        shapes = {"weight": tensors["weight"], "readout": tensors["readout"]}
        for name, like in shapes.items():
            _check(tensors, f"stream.{name}", (like.dtype,), tuple(like.shape))
        width = len(tensors["weight"])
        _check(tensors, "stream.average.weight", (torch.float64,), tuple(tensors["weight"].shape))
        entries = width if "stream.average.readout" in own and tensors["stream.average.readout"].numel() else 0
        _check(tensors, "stream.average.readout", (torch.float64,), (entries,))
