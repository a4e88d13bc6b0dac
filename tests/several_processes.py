"""A script run in several processes that meet in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import Running

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


def findings(script: Path, folder: Path, size: int) -> list[dict[str, Any]]:
    """Findings of every process but the last, which ends before the others are done.

    The script takes the folder, the number of the process and how many there are, and writes found-NUMBER.json there.
    """
    running = [Running(folder, rank, size, script=str(script), folder=folder) for rank in range(size)]
    ended = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0] * size, "".join(ended)[-4000:]
    return [json.loads((folder / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(size - 1)]
