"""A folder in which models were trained, once for all tests."""

from pathlib import Path

import pytest
from command_line import Result, call_all, run_interpreter, write_houses

COMMON = ["train", "houses.csv", "--width", 256]
# By an interpreter of its own: threads are set before libraries are imported.
TWO_THREADS = [*COMMON, "--impute", "--threads", 2, "--out", "two.widefit", "--no-report", "--quiet"]
TRAINING: dict[str, list[object]] = {
    "houses": [*COMMON, "--impute", "--threads", 1],
    "flowers": ["train", "iris", "--width", 256, "--json", "--no-report", "--out", "flowers.widefit"],
    "forced": [
        *COMMON,
        *("--target", "rooms", "--task", "regression", "--drop", "age", "--drop", "price", "--test-size", 0),
        *("--activation", "relu", "--alpha", 0.5, "--solver", "cg", "--max-iter", 2),
        *("--json", "--quiet", "--out", "forced.widefit", "--report", "forced.html"),
    ],
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Result]]:
    """houses.csv, test.csv and new.csv (without prices), the models of `TRAINING` and
    `TWO_THREADS`, and what was said in training."""
    folder = tmp_path_factory.mktemp("houses")
    write_houses(folder / "houses.csv", 120, 0)
    write_houses(folder / "test.csv", 30, 1)
    write_houses(folder / "new.csv", 17, 2, price=False)
    found = call_all(TRAINING, folder) | {"two threads": run_interpreter(*TWO_THREADS, folder=folder)}
    assert [result.code for result in found.values()] == [0] * len(found), found
    return folder, found


@pytest.fixture(scope="session")
def houses(trained: tuple[Path, dict[str, Result]]) -> Path:
    """The folder alone."""
    return trained[0]
