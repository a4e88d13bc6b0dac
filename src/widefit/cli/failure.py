"""The end of a command that cannot do its work: one line on standard error, and an exit code."""

import sys
from collections.abc import Callable
from errno import EPIPE
from functools import wraps
from typing import NoReturn

import typer

from widefit.cli.launch import several_processes
from widefit.cli.streams import silence

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

# What libraries say in a RuntimeError where the machine has no more to give, or the user has named what is not there.
_SAID = {
    "can't allocate memory": ("out of memory", FAILED),
    "not enough memory": ("out of memory", FAILED),
    "out of memory": ("out of memory", FAILED),
    "can't start new thread": ("no more threads can be started; take fewer with --threads", FAILED),
    "Could not determine home directory": ("there is no home folder of the user after ~", BAD_INPUT),
    "Symlink loop": ("a symbolic link points to itself", BAD_INPUT),
}


def guarded(command: Callable[..., int], shared: bool = False) -> Callable[..., None]:
    """Turn the errors that a user can cause into messages, and the command's result into the exit code.

    A ValueError is bad input (2); what the machine refuses, and what a library gives up on, is a failure (1); anything
    else is a fault in widefit and keeps its traceback. A command that is not `shared` is refused under torchrun.
    """

    @wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            if not shared:
                _refuse_several_processes()
            code = command(*args, **kwargs)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except BaseException as error:
            _end_with(error)
        if code:
            raise typer.Exit(code)

    return run


def _refuse_several_processes() -> None:
    """Each of several processes would do all of the work, and write the same files."""
    if several_processes():
        raise ValueError(
            "this command runs in one process: start it without torchrun; several processes share "
            "`widefit train`, widefit.train, fit and widefit.GaussNewton(model, process_group=...)"
        )


def _end_with(error: BaseException) -> NoReturn:
    """End as an error calls for; raise it again where it is nobody's but ours."""
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == EPIPE):
        # Whoever read our output has left (head, less).
        silence(sys.stdout)
        raise typer.Exit(FAILED) from None
    if isinstance(error, ValueError):
        _end(str(error), BAD_INPUT)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror or error}", FAILED)
    if isinstance(error, MemoryError):
        _end(str(error) or "out of memory", FAILED)
    if isinstance(error, ArithmeticError):
        _end(str(error), FAILED)
    if type(error).__name__ == "ProcessError":
        _end(str(error), FAILED)
    if isinstance(error, RuntimeError):
        for sign, (message, code) in _SAID.items():
            if sign in str(error):
                _end(message, code)
    if _is_of_polars(error):
        _end(str(error), FAILED)
    raise error


def _is_of_polars(error: BaseException) -> bool:
    """Whether polars gives up: by an error of its own, or by a panic, which is no Exception."""
    polars = sys.modules.get("polars")
    if polars is None:
        return False
    return isinstance(error, (polars.exceptions.PolarsError, polars.exceptions.PanicException))


def _end(message: str, code: int) -> NoReturn:
    try:
        typer.echo(f"widefit: error: {' '.join(message.split())}", err=True)
    except OSError:  # nobody can be told
        silence(sys.stderr)
    # What standard output has not taken so far it will not take at the end of the process.
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
    raise typer.Exit(code)
