"""What every bench shares: the machine's description, the command line, the JSON file and the figure.

A bench is a module with `run(size, **options) -> dict` that returns

    {"machine": {...}, "settings": {...}, "figures": [{"name", "value", "unit", "against", "ratio"}]}

with `"skipped": [{"name", "reason"}]` where something was not measured, and `draw(result, path)`; it ends in
`main("name", run, draw)`. `size` is "quick" (under a minute), "default" or "full".
"""

import argparse
import inspect
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> dict:
    """Processor, cores, memory, threads and versions: what a figure needs beside it."""
    import torch

    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def entry(
    name: str, value: float, unit: str, against: str | None = None, ratio: float | None = None
) -> dict[str, str | float | None]:
    """One line of `figures`: `ratio` says how many times better than `against` the value is.

    An infinite value (a goal never reached) and a ratio of infinities are recorded as null.
    """
    known = [number if number is not None and math.isfinite(number) else None for number in (value, ratio)]
    return {"name": name, "value": known[0], "unit": unit, "against": against, "ratio": known[1]}


def synchronize(device: str) -> None:
    """Wait for what a device still has to do, before a clock is read."""
    import torch

    module = getattr(torch, torch.device(device).type, None)
    if device != "cpu" and module is not None:
        module.synchronize()


def peak_memory_gb() -> float:
    """Largest resident set of this process so far, in 10⁹ bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main(name: str, run: Callable[..., dict], draw: Callable[[dict, Path], None] | None = None) -> None:
    """The command line of a bench; every further keyword of `run` with a default becomes an option of its own."""
    parser = argparse.ArgumentParser(description=f"widefit bench {name}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="under a minute")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="the largest sizes too")
    parser.add_argument("--out", "-o", type=Path, metavar="FILE", help="write the result here, as JSON")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the figure here")
    options = [p for p in inspect.signature(run).parameters.values() if p.name != "size"]
    for option in options:
        kind = str if option.default is None else type(option.default)
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default)
    arguments = parser.parse_args()

    result = run(arguments.size or "default", **{option.name: getattr(arguments, option.name) for option in options})
    for line in result["figures"]:
        print(_readable(line))
    for line in result.get("skipped", []):
        print(f"skipped {line['name']}: {line['reason']}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.figure and draw is not None:
        draw(result, arguments.figure)


def _readable(line: dict) -> str:
    from widefit.cli.benches import compared

    value = "not reached" if line["value"] is None else f"{line['value']:.4g} {line['unit']}"
    beside = compared(line)
    return f"{line['name']}: {value}" + (f"  ({beside})" if beside else "")


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
