"""Whatever is changed in a file whose checksum is right: it is used, or refused in words, and nothing crashes."""

from pathlib import Path

from forking import Running

SCRIPT = Path(__file__).with_name("altered.py")


def test_every_kind_of_file_with_one_thing_altered(tmp_path: Path) -> None:
    process = Running(tmp_path, "all", 0, 8, script=str(SCRIPT), folder=tmp_path)
    stdout, stderr = process.communicate(timeout=240)
    last = stderr.strip().splitlines()[-12:]
    assert process.returncode == 0, f"after {last}:\n{stdout}"
