"""A file is there whole or not at all, keeps what it was, and is written into where it is no file."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from widefit.files.atomic import check_writable, replacing


def write(path: Path | str, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_permissions_stay(tmp_path: Path) -> None:
    for mode in (0o600, 0o640, 0o664):
        (tmp_path / "f").unlink(missing_ok=True)
        (tmp_path / "f").touch()
        (tmp_path / "f").chmod(mode)
        write(tmp_path / "f", "new")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode
        assert (tmp_path / "f").read_text() == "new"


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(0o444)
    for attempt in (check_writable, lambda path: write(path, "new")):
        with pytest.raises(PermissionError, match="read-only"):
            attempt(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write(tmp_path / "pipe", "through the pipe")
    reader.join(20)
    assert found == ["through the pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="the system has no /dev/null")
def test_a_device_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    for path in ("/dev/null", tmp_path / "link"):
        check_writable(path)
        write(path, "gone")
        assert Path("/dev/null").is_char_device()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="the system has no /dev/stdout")
@pytest.mark.parametrize("to", ["a file", "a pipe"])
def test_standard_output_under_another_name(tmp_path: Path, to: str) -> None:
    code = (
        "import sys; from widefit.files.atomic import replacing\n"
        "print('before', flush=True)\n"
        "with replacing('/dev/stdout') as temporary: temporary.write_text('written\\n')\n"
        "print('after', flush=True)"
    )
    if to == "a pipe":
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    else:
        with open(tmp_path / "out", "w") as out:
            subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        found = (tmp_path / "out").read_text()
    assert sorted(found.split()) == ["after", "before", "written"]


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for letter in ("a", "€"):
        size = longest // len(letter.encode())
        check_writable(tmp_path / (letter * size))
        write(tmp_path / (letter * size), "x")
        for attempt in (check_writable, lambda path: write(path, "x")):
            with pytest.raises(OSError, match="name too long"):
                attempt(tmp_path / (letter * (size + 1)))
    assert len(os.listdir(tmp_path)) == 2


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    for attempt in (check_writable, lambda path: write(path, "x")):
        with pytest.raises(OSError, match="symbolic links"):
            attempt(tmp_path / "a")


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    check_writable(tmp_path / "new")
    check_writable(tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "no" / "new")


HANG = (
    "import sys, time; from widefit.files.atomic import replacing\n"
    "with replacing(sys.argv[1]) as temporary:\n"
    "    temporary.write_text('half'); print(temporary.name, flush=True); time.sleep(600)"
)


def test_what_a_killed_process_left_is_removed_by_the_next_and_work_in_progress_is_not(tmp_path: Path) -> None:
    target, other = tmp_path / "f", tmp_path / "f.2"
    processes = [
        subprocess.Popen([sys.executable, "-c", HANG, str(path)], stdout=subprocess.PIPE, text=True)
        for path in (target, target, other)
    ]
    names = [process.stdout.readline().strip() for process in processes if process.stdout]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    processes[0].send_signal(signal.SIGKILL)
    processes[2].send_signal(signal.SIGKILL)
    for process in (processes[0], processes[2]):
        process.wait(20)
    write(target, "whole")
    assert sorted(os.listdir(tmp_path)) == sorted(["f", names[1], names[2]])
    processes[1].terminate()
    processes[1].wait(20)
    write(target, "whole")
    write(other, "whole")
    assert sorted(os.listdir(tmp_path)) == ["f", "f.2"]
