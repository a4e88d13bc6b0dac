"""Before widefit is imported: shapes and types are checked at run time, threads and the compilation cache are fixed."""

import os
from pathlib import Path

import hypothesis
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache"))
os.environ.setdefault("OMP_NUM_THREADS", "2")

# The hook wraps every function it meets. Numba and Triton need theirs bare; the estimators have to meet bad input
# themselves, and return Self, which only a class decorator can check.
BARE = {"kernels", "estimators"}
PARTS = {path.stem for path in (ROOT / "src" / "widefit").iterdir() if not path.name.startswith(("_", "."))}
install_import_hook(sorted(f"widefit.{part}" for part in PARTS - BARE), "typecheck.checked")

hypothesis.settings.register_profile("widefit", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("widefit")
