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

from neurontune_peft.cli import calls, config_files
from neurontune_peft.cli import main as program
from neurontune_peft.cli.evaluate import Evaluate
from neurontune_peft.cli.main import COMMANDS, overview


def loaded(*words: str) -> set[str]:
    """The modules that a fresh Python has loaded when it ends."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    return {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "neurontune_peft", "--help"),
        (
            "-c",
            "import sys; sys.argv = ['bin/neurontune', '--help']; from neurontune_peft.__main__ import main; main()",
        ),
    ],
)
def test_help_loads_neither_torch_nor_peft(words):
    modules = loaded(*words)
    assert "neurontune_peft.cli.main" in modules
    assert not {"torch", "peft", "transformers", "numpy", "tyro"} & modules


def test_the_help_of_no_command_loads_torch():
    code = """
import contextlib, io, json, sys
sys.argv = ["bin/neurontune"]
from neurontune_peft.cli.main import COMMANDS, main
found = {}
for name in COMMANDS:
    text = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        main([*name.split(), "--help"])
    heavy = {"torch", "transformers", "peft", "accelerate", "numpy", "safetensors", "huggingface_hub"}
    found[name] = [f"Example: neurontune {name} " in text.getvalue(), *sorted(heavy & set(sys.modules))]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: [True] for name in COMMANDS}


def test_a_program_registers_the_method_with_a_command_that_runs():
    code = (
        "import sys; sys.argv = ['bin/neurontune']; import neurontune_peft; print('torch' in sys.modules); "
        "from neurontune_peft.cli import main; main(['prompts', 'show']); import peft; "
        "print('NEURONTUNE' in peft.PeftType.__members__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert (words[0], words[-1]) == ("False", "True")


def test_any_other_script_registers_the_method_at_once():
    code = (
        "import sys; sys.argv = ['neurontune.py']; import neurontune_peft, peft; print(peft.PeftType.NEURONTUNE.value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "NEURONTUNE"


def test_every_command_of_the_table_runs_and_shows_an_example():
    for name, command in COMMANDS.items():
        kind = getattr(import_module(f"neurontune_peft.cli.{command.module}"), command.name)
        assert callable(kind.run), name
        assert f"Example: neurontune {name} " in inspect.getdoc(kind), name
        assert len(f"  {name}  {command.help}") < 80, name


def test_every_default_of_every_command_survives_a_file(tmp_path):
    for name, command in COMMANDS.items():
        kind = getattr(import_module(f"neurontune_peft.cli.{command.module}"), command.name)
        made = config_files._made(kind, {})
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_files.as_options(made, tmp_path)))
        assert config_files.read(tmp_path / "run.yaml", name, kind, kind) == made, name


def test_the_overview_fits_a_screen_and_ends_with_an_example():
    lines = overview().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith("Example: neurontune ")


@dataclass(frozen=True)
class Inner:
    """
    Options of a part.

    Args:
        steps: How many.
    """

    steps: int = 3


@dataclass(frozen=True)
class Toy:
    """
    A command.

    Example: neurontune toy thing --output out

    Args:
        thing: What it is about.
        output: New file.
        rate: A number.
        names: Some names.
        sizes: Some numbers.
        limit: Most of it.
        force: Whether to.
        part: Its part.
    """

    thing: calls.tyro.conf.Positional[str]
    output: Path = field(kw_only=True)
    rate: float = 0.1
    names: tuple[str, ...] = ("a",)
    sizes: list[float] = field(default_factory=list)
    limit: int | None = None
    force: bool = False
    part: Inner = field(default_factory=Inner)

    def run(self) -> dict[str, object] | None:
        """Write what was asked for."""
        if self.thing == "wrong":
            raise ValueError("got wrong; expected right; do it")
        if self.thing == "interrupted":
            raise KeyboardInterrupt
        self.output.write_text(f"{self.thing} {self.rate} {self.names} {self.limit} {self.force} {self.part.steps}")
        print("for people")
        if self.thing == "fails":
            raise calls.CheckFailed(Found(self.part.steps))
        return {"steps": self.part.steps}


@dataclass(frozen=True)
class Found:
    """A result that knows itself as JSON types."""

    steps: int

    def as_dict(self) -> dict[str, int]:
        """As JSON types."""
        return {"steps": self.steps}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs `neurontune toy` in an empty directory."""
    monkeypatch.setitem(COMMANDS, "toy", COMMANDS["tune"])
    monkeypatch.setattr(sys.modules[program.__module__], "_class", lambda name: Toy)
    monkeypatch.chdir(tmp_path)
    return lambda *words: program(["toy", *words])


def test_exit_codes_are_0_fine_1_failed_check_2_wrong_use_130_interrupted(toy, capsys):
    assert toy("x", "--output", "one") == 0
    for words, code in ((["fails", "--output", "two"], 1), (["x"], 2), (["x", "--output", "3", "--rate", "many"], 2)):
        with pytest.raises(SystemExit) as caught:
            toy(*words)
        assert caught.value.code == code
    assert toy("wrong", "--output", "four") == 2
    assert toy("interrupted", "--output", "five") == 130
    assert program(["tuna"]) == program([]) == 2
    shown = capsys.readouterr()
    assert shown.out == "for people\n" * 2
    assert "got command 'tuna'; expected 'tune'" in shown.err
    assert program(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: neurontune COMMAND")


def test_the_help_of_a_command_ends_with_its_example(toy, capsys):
    with pytest.raises(SystemExit) as caught:
        toy("--help")
    assert not caught.value.code
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == "Example: neurontune toy thing --output out"
    assert sum("Example:" in line for line in lines) == 1
    assert any("--config" in line for line in lines)


def test_options_in_a_file_are_those_of_the_command_line_which_goes_first(toy, tmp_path):
    (tmp_path / "here.yaml").write_text("thing: x\nrate: 1e-3\nnames: [b, c]\nlimit: 7\nforce: true\nsteps: 9\n")
    toy("--config", "here.yaml", "--output", "one")
    assert (tmp_path / "one").read_text() == "x 0.001 ('b', 'c') 7 True 9"
    toy("y", "--config=here.yaml", "--output", "two", "--names", "d", "--no-force", "--steps", "1", "--limit", "None")
    assert (tmp_path / "two").read_text() == "y 0.001 ('d',) None False 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratte: 1", "got option 'ratte' in here.yaml; expected options of 'toy'; did you mean 'rate'?"),
        ("rate: fast", "got rate='fast' in here.yaml; expected a number"),
        ("limit: 1.5", "got limit=1.5 in here.yaml; expected a whole number or null"),
        ("force: 1", "got force=1 in here.yaml; expected true or false"),
        ("names: b", "got names='b' in here.yaml; expected a list"),
        ("sizes: [1, big]", "got sizes=[1, 'big'] in here.yaml; expected a number"),
        ("thing: 3", "got thing=3 in here.yaml; expected text"),
        ("command: tune", "got here.yaml, made by 'tune'; expected options of 'toy'"),
        ("- a", "without a mapping"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_a_wrong_file_of_options_is_refused_by_name(toy, tmp_path, capsys, text, message):
    (tmp_path / "here.yaml").write_text(text)
    assert toy("x", "--config", "here.yaml", "--output", "one") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
    assert toy("x", "--config", "nowhere.yaml", "--output", "one") == 2


def test_an_output_has_the_options_of_its_run_beside_it_from_which_it_is_repeated(toy, tmp_path):
    toy("x", "--output", "one", "--rate", "0.30000000000000004", "--steps", "5", "--names", "no", "1e5")
    record = yaml.safe_load((tmp_path / "one.run.yaml").read_text())
    assert record["command"] == "toy"
    assert set(record) == {"command", "thing", "rate", "names", "sizes", "limit", "force", "steps"}
    toy("--config", "one.run.yaml", "--output", "two")
    assert (tmp_path / "two").read_text() == (tmp_path / "one").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_of_options_holds_paths_as_seen_from_there(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Places:
        model: calls.tyro.conf.Positional[str]
        neurons: Path
        adapter: str = "user/adapter"
        output: Path | None = None

    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "home" / "alice").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "alice"))
    monkeypatch.chdir(tmp_path / "models")
    given = Places("m", tmp_path / "home" / "alice" / "n.json", output=tmp_path / "out")
    config_files.write_beside("places", given)
    text = (tmp_path / "out" / "run.yaml").read_text()
    assert str(tmp_path) not in text
    assert "alice" not in text
    monkeypatch.chdir(tmp_path)
    read = config_files.read(tmp_path / "out" / "run.yaml", "places", Places, Places)
    assert (read.model, read.neurons, read.adapter) == ("models/m", Path("home/alice/n.json"), "user/adapter")


def test_json_is_one_object_on_stdout_whatever_happens(toy, capsys):
    assert toy("x", "--output", "one", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"command": "toy", "exit_code": 0, "output": "one", "result": {"steps": 3}}
    assert shown.err == "for people\n"
    with pytest.raises(SystemExit):
        toy("fails", "--output", "two", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["exit_code"], found["result"]) == (1, {"steps": 3})
    with pytest.raises(SystemExit):
        toy("wrong", "--output", "three", "--json")
    assert json.loads(capsys.readouterr().out)["error"] == "got wrong; expected right; do it"


def test_completion_knows_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        program(["--tyro-print-completion", "bash"])
    assert not caught.value.code
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--false-positive-budget" in script


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A tiny model and prompt set on disk; the words that name them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")
    return [str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts"), "--max-new-tokens", "4"]


def test_a_run_is_repeated_bit_for_bit_from_its_run_yaml(model, tmp_path):
    options = ["--steps", "2", "--inner-steps", "1", "--counts", "safety=6", "--modulation", "static", "--lr", "0.07"]
    assert program(["tune", *model, *options, "--output", str(tmp_path / "one")]) == 0
    run = tmp_path / "one" / "run.yaml"
    assert str(tmp_path) not in run.read_text()
    assert program(["tune", "--config", str(run), "--output", str(tmp_path / "two")]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "neurons.json", "log.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    for part in ("before", "after", "adapter", "provenance"):  # the rest holds seconds and the command
        assert json.dumps(one[part]) == json.dumps(two[part]), part
    assert yaml.safe_load((tmp_path / "two" / "run.yaml").read_text()) == yaml.safe_load(run.read_text())


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (
            ["tune", "--counts", "safety=6", "--modulation", "static", "--output", "out"],
            {"measuring", "scoring neurons", "training scales"},
        ),
        (["evaluate", "--output", "out.json"], {"measuring"}),
        (
            ["compare", "--methods", "neurontune", "random", "--counts", "safety=6", "--output", "out"],
            {"measuring 11 rows", "scoring neurons", "4 trainings"},
        ),
    ],
)
def test_a_dry_run_estimates_time_and_memory_and_writes_nothing(model, tmp_path, monkeypatch, capsys, words, steps):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert program([words[0], *model, *words[1:], "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert {part["step"] for part in found["parts"]} == steps
    assert found["seconds"] == pytest.approx(sum(part["measured"] * part["factor"] for part in found["parts"]))
    assert found["peak_bytes"] > 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantize_loads_the_weights_in_fewer_bits(model, kind):
    command = calls.parse("evaluate", Evaluate, [*model, "--quantize", kind]).command
    loaded_model, _ = command.load()
    names = {type(module).__name__ for module in loaded_model.modules()}
    assert ("Linear8bitLt" if kind == "int8" else "Linear4bit") in names
