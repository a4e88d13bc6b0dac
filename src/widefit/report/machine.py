"""The machine a run was made on, in words."""

import os
import platform
from pathlib import Path

import torch

import widefit
from widefit.kernels.devices import devices, model_of


def this_machine() -> dict[str, str]:
    """CPU, cores, threads, memory and versions, as a report and a benchmark state them."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": _memory(),
        "accelerator": ", ".join(model_of(torch.device(kind)) for kind in devices()[1:]) or "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "widefit": widefit.__version__,
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
