"""Files are replaced whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from neurontune_peft.checks import write_atomically


def test_writing_replaces_the_file_and_leaves_no_temporary_one(tmp_path):
    write_atomically(tmp_path / "deep" / "file.txt", "old")
    write_atomically(tmp_path / "deep" / "file.txt", b"new")
    assert (tmp_path / "deep" / "file.txt").read_text() == "new"
    assert os.listdir(tmp_path / "deep") == ["file.txt"]


def test_a_failing_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file.txt", "old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    code = (
        "import os, signal; from neurontune_peft import checks\n"
        "checks.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"checks.write_atomically({str(path)!r}, 'new')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
