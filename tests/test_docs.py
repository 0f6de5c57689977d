"""The documentation says what is true: the tutorial runs, examples of code run, and links lead somewhere."""

import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer

from neurontune_peft import PromptSet, attribute, evaluate
from neurontune_peft.cli import main
from neurontune_peft.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not executed[^>]*-->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What makes the tutorial quick; all else is run as it is printed.
QUICK = {
    "tune": "--steps 2 --inner-steps 1 --max-new-tokens 4 --shares 0.5 --modulation static --prompts small",
    "evaluate": "--max-new-tokens 4 --prompts small",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each code block that is not marked as left out."""
    return [(kind, text) for left_out, kind, text in BLOCK.findall(page.read_text("utf-8")) if not left_out]


def small_prompts() -> PromptSet:
    shipped = PromptSet.load()
    kept = []
    for kind in ("harmful", "benign", "borderline"):
        kept += shipped.select(kind=kind, split="train")[::8] + shipped.select(kind=kind, split="test")[::20]
    return replace(shipped, prompts=tuple(kept))


def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    small_prompts().save("small")
    names: dict[str, object] = {}
    ran = []
    for kind, text in blocks(ROOT / "docs" / "tutorial.md"):
        if kind == "python":
            exec(compile(text, "tutorial.md", "exec"), names)
        for line in text.splitlines() if kind == "bash" else []:
            program, command, *words = shlex.split(line)
            assert program == "neurontune", line
            assert main([command, *words, *QUICK.get(command, "").split()]) == 0, line
            ran.append(command)
    assert ran == ["sites", "tune", "tune", "inspect", "evaluate", "audit"]
    shown = capsys.readouterr().out
    assert "Nothing was written" in shown
    assert "rank 0:" in shown
    listed = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "tutorial.md").read_text("utf-8"), re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", " ".join(listed)):
        assert (tmp_path / "my-adapter" / name).is_file(), name
    assert not torch.equal(names["plain"], names["half"])
    assert (tmp_path / "measured.json").is_file()


def test_the_prompt_set_of_the_how_to_page_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, text),) = [block for block in blocks(ROOT / "docs" / "howto" / "attacks.md") if block[0] == "python"]
    exec(text, {})
    assert "riddle" in PromptSet.load("my-prompts").families(split="train")


def test_the_method_and_the_judge_of_the_page_on_extending_work():
    names: dict[str, object] = {}
    for kind, text in blocks(ROOT / "docs" / "extending.md"):
        if kind == "python" and "def " in text:
            exec(text, names)
    model, tokenizer, prompts = tiny_llama(), tiny_tokenizer(), tiny_prompt_set()
    scores = attribute(model, tokenizer, prompts, method=names["last_activation"], roles=("safety",))
    assert all(values.abs().sum() > 0 for values in scores.values["safety"].values())
    report = evaluate(model, tokenizer, prompts, judge=names["polite"], max_new_tokens=4)
    assert {example.label for example in report.examples} <= {"refusal", "compliance"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_on_a_page_is_python_and_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for kind, code in blocks(page):
        if kind == "python":
            ast.parse(code)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" in target or target in ("results.md", "../results.md"):  # made from benchmarks/RESULTS.md
            continue
        assert (page.parent / target).resolve().exists(), target


def test_commands_that_pages_show_exist():
    known = {name.split()[0] for name in COMMANDS} | {"COMMAND"}
    for page in PAGES:
        for command in re.findall(r"(?:^|`|&& )neurontune ([a-z]\w*)", page.read_text("utf-8"), re.MULTILINE):
            assert command in known, f"{page.name}: neurontune {command}"
