"""No file that a command writes tells of the machine: no absolute path, no directory or name of its user."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from gguf_base import write_base_gguf
from helpers import CHAT_TEMPLATE, tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import AutoPeftModelForCausalLM

from neurontune_peft.cli import main, tuning
from neurontune_peft.cli.config_files import as_options, read
from neurontune_peft.cli.judge import JudgeAnswers
from neurontune_peft.cli.main import COMMANDS
from neurontune_peft.tuner.saved import is_local_name, relative_base

USER = "quirinius"  # a name that no library holds
ANSWERS = [{"prompt": "Do it.", "completion": "I can't help with that."}]
QUICK = ["--steps", "2", "--inner-steps", "1", "--counts", "safety=6", "--max-new-tokens", "2"]
STATIC = ["--modulation", "static"]


def calls(home: Path) -> dict[str, list[list[str]]]:
    """Command to its calls, all with absolute paths; a call may use what those before it wrote."""
    model, prompts, template = str(home / "models" / "base"), str(home / "prompts"), str(home / "template.jinja")

    def at(name: str) -> str:
        return str(home / "work" / name)

    given = [model, "--prompts", prompts, "--chat-template", template]
    on = [*given, "--adapter", at("tuned"), "--max-new-tokens", "2"]
    export = ["export", at("tuned"), "--model", model, "--to"]
    return {
        "tune": [["tune", *given, *QUICK, *STATIC, "--output", at("tuned"), "--shares", "0.5"]],
        "compose": [["compose", at("tuned"), at("tuned"), "--weights", "0.5", "0.5", "--output", at("composed")]],
        "prune": [["prune", at("tuned"), "--counts", "safety=3", "--output", at("pruned")]],
        "attribute": [["attribute", *given, "--n-prompts", "2", "--output", at("scores.safetensors")]],
        "select": [["select", at("scores.safetensors"), "--counts", "safety=6", "--output", at("neurons.json")]],
        "verify": [
            [
                "verify",
                *given,
                "--neurons",
                at("neurons.json"),
                "--scores",
                at("scores.safetensors"),
                "--output",
                at("trust"),
                "--scales",
                "2.0",
                "--n-prompts",
                "2",
                "--max-new-tokens",
                "2",
                "--methods",
                "gradient",
                "random",
            ]
        ],
        "compare": [
            [
                "compare",
                *given,
                *QUICK,
                "--methods",
                "random",
                "--strengths",
                "1.0",
                "--lr-tries",
                "1",
                "--output",
                at("compared"),
            ]
        ],
        "evaluate": [["evaluate", *on, "--output", at("measured.json"), "--cache", at("cache")]],
        "judge": [["judge", str(home / "answers.jsonl"), "--output", at("judged.jsonl")]],
        "sweep": [
            [
                "sweep",
                *on,
                "--strengths",
                "1.0",
                "--counts",
                "1.0",
                "--max-tests",
                "2",
                "--output",
                at("decision"),
                "--write-presets",
            ]
        ],
        "certify": [["certify", *on, "--output", at("certificate.json"), "--dial", "strength"]],
        "stress": [["stress", *on, "--output", at("stress.json"), "--kinds", "pruning", "--max-tests", "2"]],
        "report": [["report", at("measured.json"), "--output", at("page")]],
        "prompts convert": [
            [
                "prompts",
                "convert",
                str(home / "rows.csv"),
                "--kind",
                "benign",
                "--attacks",
                prompts,
                "--output",
                at("set"),
            ]
        ],
        "export": [
            [*export, "lora", "--strength", "0.5", "1.0", "--output", at("lora")],
            [*export, "ia3", "--output", at("ia3")],
            [*export, "merged", "--output", at("merged")],
            [*export, "gguf", "--base", str(home / "base.gguf"), "--output", at("gguf")],
            [*export, "ollama", "--base", str(home / "base.gguf"), "--output", at("ollama")],
        ],
    }


# These only print, or send what other tests look at (test_hub).
WITHOUT_FILES = {"chat", "prompts validate", "prompts show", "sites", "inspect", "audit", "diff", "push", "doctor"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The directory of a user, with a model, prompts and empty caches."""
    home = tmp_path_factory.mktemp("machine") / "home" / USER
    tiny_llama().save_pretrained(home / "models" / "base")
    tiny_tokenizer().save_pretrained(home / "models" / "base")
    tiny_prompt_set().save(home / "prompts")
    (home / "template.jinja").write_text(CHAT_TEMPLATE)
    (home / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))
    (home / "rows.csv").write_text("prompt\nWhat is a tree?\nWhat is a bird?\n")
    (home / "work").mkdir()
    write_base_gguf(home / "models" / "base", home / "base.gguf")
    return home


def code_of(words: list[str]) -> int:
    """The exit code of a call."""
    try:
        return main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2


def interrupted(words: list[str], work: Path) -> None:
    """Stops a call of tune before its last step, and keeps a copy of what it leaves beside its output."""

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "write_report", stop)
        assert main(words) == 130
    shutil.copytree(work / ".tuned.resume", work / "left")


@pytest.fixture(scope="module")
def written(home) -> dict[str, Path]:
    """Runs every command that writes, in order; returns the files by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USER", USER)
        patch.setattr("huggingface_hub.constants.HF_HOME", str(home / "work" / "hf"))
        patch.chdir(home / "work")
        interrupted(calls(home)["tune"][0], home / "work")  # the first call goes on with what this one leaves
        for name, given in calls(home).items():
            for words in given:
                may_fail = name in ("certify", "verify")  # their files are written all the same
                assert code_of(words) in ((0, 1) if may_fail else (0,)), name
    return {str(path.relative_to(home / "work")): path for path in (home / "work").rglob("*") if path.is_file()}


def test_every_command_is_looked_at():
    assert set(calls(Path("/"))) | WITHOUT_FILES == set(COMMANDS)


def test_no_command_writes_an_absolute_path_or_the_name_of_the_user(written, home):
    assert {"left/options.json", "left/training-1.safetensors"} <= set(written)
    assert {"tuned/adapter_config.json", "tuned/run.yaml", "merged/config.json", "ollama/Modelfile"} <= set(written)
    private = [str(home.parents[1]).encode(), USER.encode(), os.path.expanduser("~").encode()]
    found = {
        name: sorted({text.decode() for text in private if text in content})
        for name, content in ((name, path.read_bytes()) for name, path in written.items())
    }
    assert not {name: texts for name, texts in found.items() if texts}


def test_an_adapter_of_a_local_model_is_found_again_from_the_same_directory(written, home, monkeypatch):
    monkeypatch.chdir(home / "work")
    for name in ("tuned", "composed", "pruned"):
        base = json.loads(written[f"{name}/adapter_config.json"].read_text())["base_model_name_or_path"]
        assert base == "../models/base"
    assert AutoPeftModelForCausalLM.from_pretrained("tuned").get_neurons().totals == {"safety": 6}


def test_a_base_model_is_named_as_seen_from_here_and_never_like_one_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "home" / "alice" / "m").mkdir(parents=True)
    (tmp_path / "user" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "alice"))
    monkeypatch.chdir(tmp_path)
    assert relative_base(None) is None
    assert relative_base("user/other") == "user/other"
    assert relative_base("user/model") == relative_base(str(tmp_path / "user" / "model")) == "./user/model"
    assert relative_base(str(tmp_path)) == "."
    assert relative_base(str(tmp_path / "home" / "alice" / "m")) == "~/m"
    monkeypatch.chdir(tmp_path / "home" / "alice")
    assert relative_base(str(tmp_path / "home" / "alice" / "m")) == "./m"
    assert relative_base(str(tmp_path / "user" / "model")) == "../../user/model"
    assert relative_base(str(tmp_path / "nowhere")) == "../../nowhere"
    assert all(is_local_name(name) for name in ("./m", "../m", "~/m", "."))
    assert not re.search(r"\balice\b", relative_base(str(tmp_path / "home" / "alice" / "m")) or "")


def test_a_path_inside_a_word_is_written_as_seen_from_the_file_and_found_again(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    words = (f"classifier:{tmp_path}/judge#BAD=refusal", "format", "openai:m@https://host/v1", "os.path:join")
    output = tmp_path / "out" / "judged.jsonl"
    command = JudgeAnswers(tmp_path / "a.jsonl", output=output, judge=words)
    options = as_options(command, tmp_path / "out")
    assert options["judge"] == ["classifier:../judge#BAD=refusal", *words[1:]]
    (tmp_path / "out" / "run.yaml").write_text(json.dumps(options))
    monkeypatch.chdir(tmp_path)
    read_again = read(tmp_path / "out" / "run.yaml", "judge", JudgeAnswers, JudgeAnswers)
    assert read_again.answers == Path("a.jsonl")
    assert read_again.judge == ("classifier:judge#BAD=refusal", *words[1:])
