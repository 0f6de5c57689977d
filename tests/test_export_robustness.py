"""Full disks, kill -9, two exports at once: nothing is left that looks complete, and the next run works."""

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import Case, make_case

from neurontune_peft.cli import main
from neurontune_peft.export import export_adapter, run
from neurontune_peft.export.output import RECORD, exclusive

FORMATS = ("lora", "ia3", "gguf", "ollama", "merged")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("base"), shard="40KB")


def write(case: Case, output: Path, to: str, **options: object) -> run.Export:
    if to in ("gguf", "ollama"):
        pytest.importorskip("gguf", reason="the package gguf is not installed")
    return export_adapter(
        case.adapter, output, to=to, check="weights", **({"base": "llama3"} if to == "ollama" else {}), **options
    )


def in_child(work: Callable[[], None]) -> int:
    """Run something in a forked process; returns its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(9)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def looks_complete(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("to", FORMATS)
def test_kill_9_before_the_last_step_leaves_nothing_that_looks_complete(case, tmp_path, monkeypatch, to):
    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("neurontune_peft.export.output.publish", killed)
        assert in_child(lambda: write(case, tmp_path / "out", to)) == -signal.SIGKILL
    assert looks_complete(tmp_path) == []
    write(case, tmp_path / "out", to)
    assert looks_complete(tmp_path) == ["out"]
    assert (tmp_path / "out" / RECORD).is_file()
    assert not list(tmp_path.glob(".out*"))


def test_a_merge_goes_on_after_the_last_whole_shard(case, tmp_path, monkeypatch):
    from neurontune_peft.export import merged

    calls, write_shard = [], merged.write_edited

    def killed_at_the_second(source: Path, target: Path, edits: object) -> None:
        calls.append(target.name)
        if len(calls) == 2:
            target.with_name(f".{target.name}.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_shard(source, target, edits)

    with monkeypatch.context() as patch:
        patch.setattr(merged, "write_edited", killed_at_the_second)
        assert in_child(lambda: write(case, tmp_path / "out", "merged")) == -signal.SIGKILL
    left = {path.name: path.stat().st_ino for path in (tmp_path / ".out.partial").glob("*.safetensors")}
    edits = {name for name, inode in left.items() if (case.base / name).stat().st_ino != inode}
    assert len(edits) == 1
    rewritten = []
    monkeypatch.setattr(merged, "write_edited", lambda s, t, e: (rewritten.append(t.name), write_shard(s, t, e)))
    write(case, tmp_path / "out", "merged")
    assert edits.isdisjoint(rewritten)
    assert all((tmp_path / "out" / name).stat().st_ino == inode for name, inode in left.items())
    assert not list((tmp_path / "out").glob(".*"))
    write(case, tmp_path / "again", "merged")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_what_another_setting_left_is_not_taken_over(case, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("neurontune_peft.export.output.publish", lambda *_: os._exit(3))
        assert in_child(lambda: write(case, tmp_path / "out", "merged", strengths=[3.0])) == 3
    write(case, tmp_path / "out", "merged")
    write(case, tmp_path / "fresh", "merged")
    for path in (tmp_path / "fresh").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(case, tmp_path, to):
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # bytes of any one file, as a full disk would have it
        with pytest.raises(ValueError, match=r"cannot be written .*expected a writable directory with room"):
            write(case, tmp_path / "out", to)

    assert in_child(work) == 0
    assert looks_complete(tmp_path) == []
    if to != "merged":
        assert not list(tmp_path.glob(".out.partial"))


def test_a_disk_that_is_too_small_is_refused_before_shards_are_written(case, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match=r"0\.0 GB are free and .* needed"):
        write(case, tmp_path / "out", "merged")
    assert looks_complete(tmp_path) == []


@pytest.mark.parametrize("to", FORMATS)
def test_a_target_that_cannot_be_written_is_refused(case, tmp_path, to):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(ValueError, match="cannot be written"):
        write(case, tmp_path / "file" / "out", to)
    assert (tmp_path / "file").read_text() == "no directory"


@pytest.mark.parametrize("to", FORMATS)
def test_of_two_exports_to_one_directory_one_wins_and_the_other_says_so(case, tmp_path, monkeypatch, to):
    said, first = [], run.verify

    def meanwhile(*args: object) -> object:
        monkeypatch.setattr(run, "verify", first)
        with pytest.raises(ValueError, match="another export is writing; expected one at a time") as error:
            write(case, tmp_path / "out", to)
        said.append(error)
        return first(*args)

    monkeypatch.setattr(run, "verify", meanwhile)
    write(case, tmp_path / "out", to)
    assert said
    assert (tmp_path / "out" / RECORD).is_file()
    assert looks_complete(tmp_path) == ["out"]


def test_what_exists_is_kept_unless_it_is_an_export_and_force_is_given(case, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for force, message in ((False, "which exists; expected a new directory"), (True, "no export of this program")):
        with pytest.raises(ValueError, match=message):
            write(case, tmp_path / "mine", "lora", force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    write(case, tmp_path / "out", "ia3")
    with pytest.raises(ValueError, match="--force"):
        write(case, tmp_path / "out", "lora")
    write(case, tmp_path / "out", "lora", force=True)
    assert json.loads((tmp_path / "out" / RECORD).read_text())["to"] == "lora"
    assert looks_complete(tmp_path) == ["mine", "out"]
    assert not list(tmp_path.glob(".out*"))


def test_an_export_that_fails_its_check_gets_no_name(case, tmp_path, monkeypatch):
    def wrong(*_: object) -> None:
        raise ValueError("got other weights")

    monkeypatch.setattr(run, "verify", wrong)
    for to in ("lora", "merged"):
        with pytest.raises(ValueError, match="other weights"):
            write(case, tmp_path / "out", to)
        assert looks_complete(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_export(case, tmp_path, monkeypatch):
    write(case, tmp_path / "out", "ia3")
    monkeypatch.setattr(run, "write_lora", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ValueError, match="No space left"):
        write(case, tmp_path / "out", "lora", force=True)
    assert json.loads((tmp_path / "out" / RECORD).read_text())["to"] == "ia3"


def test_the_lock_is_held_by_the_first_and_free_afterwards(tmp_path):
    with exclusive(tmp_path / "out"), pytest.raises(ValueError, match="another export"), exclusive(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


def test_the_command_prints_results_and_exits_with_2_on_wrong_use(case, tmp_path, capsys):
    words = ["export", str(case.adapter), "--to", "lora", "--output", str(tmp_path / "out")]
    assert main([*words, "--strength", "0.5", "1.0", "--counts", "safety=4"]) == 0
    shown = capsys.readouterr()
    assert "strength 0.5: weights differ by" in shown.out
    assert "same next token at" in shown.out
    assert "--max-lora-rank 8" in shown.out
    record = json.loads((tmp_path / "out" / "strength-0.5" / RECORD).read_text())
    assert (record["strength"], record["counts"]) == (0.5, {"safety": 4, "utility": 4})
    assert main(words) == 2
    assert "which exists" in capsys.readouterr().err
