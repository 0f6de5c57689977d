"""`neurontune evaluate --cache` after kill -9: the same report, and no answer that was finished is made again."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer

from neurontune_peft.cli import main
from neurontune_peft.evaluation.generation.engine import Engine

DRAWN = ["--samples", "2", "--temperature", "0.7"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command whose answers take their time: long ones, few at once."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")
    base = ["evaluate", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts")]
    return [*base, "--max-new-tokens", "24", "--batch-size", "2"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests the engine was given, call by call."""
    counts: list[int] = []
    answers = Engine.answers

    def counted(self: Engine, requests: list[list[int]]) -> object:
        counts.append(len(requests))
        return answers(self, requests)

    monkeypatch.setattr(Engine, "answers", counted)
    return counts


def finished(cache: Path) -> int:
    """Answers that stand in the cache whole; what is measured on them is kept there, too."""
    count = 0
    for path in cache.glob("*.jsonl") if cache.is_dir() else ():
        for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last end of a line is torn
            with suppress(ValueError):
                value = json.loads(line).get("value")
                count += isinstance(value, list) and all(type(token) is int for token in value)
    return count


def killed(words: list[str], cache: Path, *, after: int) -> None:
    """Start the command and kill it once so many answers are there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "neurontune_peft", *words, "--cache", str(cache)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while finished(cache) < after:
            assert child.poll() is None
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("options", "share"), [([], 0.1), (DRAWN, 0.7)], ids=["greedy", "drawn"])
def test_a_killed_evaluation_goes_on_and_reports_what_an_undisturbed_one_reports(
    tmp_path, words, asked, options, share
):
    words = [*words, *options]
    assert main([*words, "--cache", str(tmp_path / "a" / "cache"), "--output", str(tmp_path / "whole.json")]) == 0
    total = sum(asked)
    asked.clear()
    cache = tmp_path / "b" / "cache"
    killed(words, cache, after=round(share * total))
    kept = finished(cache)
    assert share * total - 1 < kept < total
    assert main([*words, "--cache", str(cache), "--output", str(tmp_path / "resumed.json")]) == 0
    assert sum(asked) == total - kept
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert finished(cache) == total


def test_a_line_that_the_kill_tore_is_made_again_and_swallows_no_other(tmp_path, words, asked):
    assert main([*words, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "whole.json")]) == 0
    total = sum(asked)
    asked.clear()
    (path,) = (tmp_path / "cache").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:-5])  # eight answers follow the first line, and most of a ninth
    assert main([*words, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "again.json")]) == 0
    assert sum(asked) == total - 8
    assert finished(tmp_path / "cache") == total
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
