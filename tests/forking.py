"""Processes of their own, forked off one that has imported the libraries: a tenth of what an interpreter takes.

What libraries read when they are imported (threads, where kernels are kept) needs an interpreter, and so does a test of
what is imported, and of how an interpreter begins and ends.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import BaseContext
from pathlib import Path
from subprocess import TimeoutExpired

# Imported before any fork; none of them starts a thread.
IMPORTED = [
    *("torch", "numba", "polars", "sklearn.datasets", "sklearn.metrics", "sklearn.model_selection", "pydantic"),
    *("numba.np.arrayobj", "numba.np.arraymath", "numba.np.npyimpl", "numba.np.linalg", "numba.typed.typeddict"),
    *("widefit.cli.app", "widefit.cli.run.train", "widefit.cli.run.apply", "widefit.cli.run.stream"),
]
READ_AT_IMPORT = ("OMP_", "KMP_", "MKL_", "OPENBLAS_", "VECLIB_", "NUMBA_", "POLARS_", "TORCH_", "PYTHON")


def forks() -> BaseContext:
    """Return what makes such processes of functions."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Running:
    """A module, a script or code in a process of its own, asked like `subprocess.Popen`.

    Parameters
    ----------
    *arguments
        Those of its command line.
    folder
        Where it starts.
    module, script, code
        What runs, one of them, as `python -m`, `python` and `python -c` take it.
    environment
        All its variables.
    given
        What standard input holds, not more than a pipe takes.
    output, errors
        Files in the place of standard output and error.
    encoding
        Of the standard streams, as `PYTHONIOENCODING` says it.
    """

    def __init__(
        self,
        *arguments: object,
        folder: Path,
        module: str = "",
        script: str = "",
        code: str = "",
        environment: Mapping[str, str] = os.environ,
        given: str = "",
        output: str = "",
        errors: str = "",
        encoding: str = "utf-8",
    ):
        changed = {name for name, value in environment.items() if os.environ.get(name) != value} - {"PYTHONPATH"}
        early = [name for name in changed if name.startswith(READ_AT_IMPORT)]
        assert not early, f"{early} are read when libraries are imported: start an interpreter"
        self._encoding = encoding
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("output", "errors")]
        for path in self._streams:
            path.touch()
        what = (module, script, code, [str(argument) for argument in arguments])
        streams = (given, output or str(self._streams[0]), errors or str(self._streams[1]), encoding)
        self._process = forks().Process(target=_run, args=(what, str(folder), dict(environment), streams), daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Return what it wrote to standard output and error, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutExpired("a fork", timeout)
        output, errors = (path.read_text(encoding=self._encoding) for path in self._streams)
        self._folder.cleanup()
        return output, errors


def _run(
    what: tuple[str, str, str, list[str]], folder: str, environment: dict[str, str], streams: tuple[str, str, str, str]
) -> None:
    """Do in a fork what an interpreter does that is started with this."""
    module, script, code, arguments = what
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _connect(*streams)
    sys.argv = [module or script or "-c", *arguments]
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif script:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    else:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _connect(given: str, output: str, errors: str, encoding: str) -> None:
    """Make the standard streams anew: a pipe and two files."""
    reading, writing = os.pipe()
    os.write(writing, given.encode())
    os.close(writing)
    for number, opened in ((0, reading), (1, os.open(output, os.O_WRONLY)), (2, os.open(errors, os.O_WRONLY))):
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)
