"""Whatever is changed in a file whose checksum is right: it is used, or refused in words, and nothing crashes."""

import subprocess
import sys
from pathlib import Path

from command_line import ENVIRONMENT

SCRIPT = Path(__file__).with_name("altered.py")


def test_every_kind_of_file_with_one_thing_altered(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "all", "0", "8"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=240,
    )
    last = ran.stderr.strip().splitlines()[-12:]
    assert ran.returncode == 0, f"after {last}:\n{ran.stdout}"
