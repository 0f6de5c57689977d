"""The command line as a whole: what it loads, its exit codes, files of options, and results for machines."""

import inspect
import json
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer

from neurontune_peft.cli import calls, main
from neurontune_peft.cli import main as program
from neurontune_peft.cli.main import COMMANDS, overview
from neurontune_peft.training import MetaConfig


def loaded(*words: str) -> set[str]:
    """The modules that a fresh Python has loaded when it ends."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    return {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "neurontune_peft", "--help"),
        ("-c", "import sys, neurontune_command; sys.argv = ['neurontune', '--help']; neurontune_command.main()"),
    ],
)
def test_help_loads_neither_torch_nor_peft(words):
    modules = loaded(*words)
    assert "neurontune_peft.cli.main" in modules
    assert not {"torch", "peft", "transformers", "numpy", "tyro"} & modules


def test_a_program_registers_the_method_with_its_first_command_that_needs_it():
    code = (
        "import sys, neurontune_command, neurontune_peft; print('torch' in sys.modules); "
        "from neurontune_peft.cli import common; import peft; print('NEURONTUNE' in peft.PeftType.__members__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_every_command_of_the_table_runs_and_shows_an_example():
    for name, command in COMMANDS.items():
        kind = getattr(import_module(f"neurontune_peft.cli.{command.module}"), command.name)
        assert callable(kind.run), name
        assert f"Example: neurontune {name} " in inspect.getdoc(kind), name
        assert len(f"  {name}  {command.help}") < 80, name


def test_the_overview_fits_a_screen_and_ends_with_an_example():
    lines = overview().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith("Example: neurontune ")
