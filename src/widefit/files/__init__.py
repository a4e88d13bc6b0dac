"""Model files and checkpoints: safetensors with JSON inside, checksummed, written whole or not at all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widefit.files.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
    from widefit.files.container import read_container, write_container
    from widefit.files.model_file import load, load_parts, save, storable
    from widefit.records import FileError

# Imported on first use: `atomic` needs no torch, and the command line checks where it will write before it is loaded.
_HOME = {
    "Checkpoint": "widefit.files.checkpoint",
    "FileError": "widefit.records",
    "load": "widefit.files.model_file",
    "load_parts": "widefit.files.model_file",
    "read_checkpoint": "widefit.files.checkpoint",
    "read_container": "widefit.files.container",
    "save": "widefit.files.model_file",
    "storable": "widefit.files.model_file",
    "write_checkpoint": "widefit.files.checkpoint",
    "write_container": "widefit.files.container",
}

__all__ = [
    "Checkpoint",
    "FileError",
    "load",
    "load_parts",
    "read_checkpoint",
    "read_container",
    "save",
    "storable",
    "write_checkpoint",
    "write_container",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'widefit.files' has no attribute {name!r}")
