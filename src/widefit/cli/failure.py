"""How a command ends when it cannot do its work: one line on standard error, and an exit code."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

import typer

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """Turn the errors that a user can cause into messages, and the command's result into the exit code.

    A ValueError is bad input (2); what the machine refuses is a failure (1); anything else is a fault in widefit and
    keeps its traceback.
    """

    @wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            code = command(*args, **kwargs)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has left (head, less); Python must not try to flush into the pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except ValueError as error:
            _end(str(error), BAD_INPUT)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(f"{where}{error.strerror or error}", FAILED)
        except MemoryError as error:
            _end(str(error) or "out of memory", FAILED)
        except ArithmeticError as error:
            _end(str(error), FAILED)
        if code:
            raise typer.Exit(code)

    return run


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"widefit: error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
