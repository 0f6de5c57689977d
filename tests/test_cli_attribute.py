"""`neurontune attribute`: one file of scores, never overwritten, and a run that goes on after an interruption."""

from pathlib import Path

import pytest
import torch
import tyro
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer

from neurontune_peft.attribution import accumulate, attribute
from neurontune_peft.cli.attribute import Attribute, parse_contrast, resolved
from neurontune_peft.neurons import Scores


@pytest.fixture(autouse=True)
def _caches_here(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def words(tmp_path) -> list[str]:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")
    return [str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts"), "--output", str(tmp_path / "scores")]


def call(words: list[str], *more: str) -> Path:
    command = tyro.cli(Attribute, args=[*words, *more])
    command.run()
    return command.output


def double(model, batch, sites, objective):
    from neurontune_peft.attribution import gradient

    return {site: 2 * part for site, part in gradient(model, batch, sites, objective).items()}


def test_scores_are_written_as_the_function_computes_them(words, capsys):
    output = call(words, "--method", "gradient", "--batch-size", "4")
    expected = attribute(tiny_llama(), tiny_tokenizer(), tiny_prompt_set(), method="gradient")
    found = Scores.load(output)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-5)
    assert list(found.by_family) == ["prefix", "persona"]
    assert "Scores of 96 neurons at 2 sites (method gradient" in capsys.readouterr().out
    assert not list(output.parent.glob("*.checkpoint*"))


def test_options_reach_the_scores(words, tmp_path):
    options = "--method gate_path --steps 2 --start 1 --end 1.5 --roles safety --contrast wrapped=0.5 --seed 3"
    metadata = Scores.load(call(words, *options.split(), "--normalize", "layer")).metadata
    assert metadata["steps"] == "2"
    assert (metadata["start"], metadata["end"]) == ("1.0", "1.5")
    assert metadata["contrast"] == "{'wrapped': 0.5}"
    assert (metadata["seed"], metadata["normalize"]) == ("3", "layer")


def test_a_function_of_the_user_is_named_by_its_module(words, tmp_path):
    own = Scores.load(call(words, "--method", "test_cli_attribute:double"))
    named = Scores.load(call([*words[:-1], str(tmp_path / "named")], "--method", "gradient"))
    for site, part in named.values["safety"].items():
        torch.testing.assert_close(own.values["safety"][site], 2 * part, rtol=1e-4, atol=1e-6)


def test_an_existing_file_is_not_overwritten(words, tmp_path):
    (tmp_path / "scores").write_text("mine")
    with pytest.raises(ValueError, match=r"got output '.*scores', which exists; expected a new file"):
        call(words)
    assert (tmp_path / "scores").read_text() == "mine"


def test_the_same_command_goes_on_after_an_interruption(words, tmp_path, monkeypatch, capsys):
    written, left = accumulate.write_atomically, [None] * 3

    def broken(path, data):
        written(path, data)
        left.pop()
        if not left:
            raise KeyboardInterrupt

    options = ("--method", "gradient", "--batch-size", "2")
    monkeypatch.setattr(accumulate, "write_atomically", broken)
    with pytest.raises(SystemExit) as caught:
        call(words, *options)
    assert caught.value.code == 130
    assert "stopped after 6 prompts: the state is in" in capsys.readouterr().err
    assert (tmp_path / "scores.checkpoint").exists()
    assert not (tmp_path / "scores").exists()
    monkeypatch.setattr(accumulate, "write_atomically", written)
    resumed = Scores.load(call(words, *options))
    whole = Scores.load(call([*words[:-1], str(tmp_path / "whole")], *options))
    torch.testing.assert_close(resumed.values, whole.values, rtol=0, atol=0)
    assert not (tmp_path / "scores.checkpoint").exists()


def test_contrasts_and_functions_that_do_not_exist_are_refused():
    assert parse_contrast(["0.5"]) == 0.5
    assert parse_contrast(["borderline=1", "wrapped=0.5"]) == {"borderline": 1.0, "wrapped": 0.5}
    for words in (["much"], ["wrapped=much"], ["1", "2"]):
        with pytest.raises(ValueError, match="expected one number, or KIND=WEIGHT"):
            parse_contrast(words)
    for name in ("nowhere:function", "os:nothing", "os:sep"):
        with pytest.raises(ValueError, match="expected MODULE:NAME of"):
            resolved(name)
