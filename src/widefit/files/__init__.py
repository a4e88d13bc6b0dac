"""Model files and checkpoints: safetensors with JSON inside, checksummed, written whole or not at all."""

from widefit.files.checkpoint import Checkpoint, read_checkpoint
from widefit.files.container import FileError, read_container, write_container
from widefit.files.model_file import load, load_parts, save

__all__ = [
    "Checkpoint",
    "FileError",
    "load",
    "load_parts",
    "read_checkpoint",
    "read_container",
    "save",
    "write_container",
]
