"""`neurontune tune` in the long run: interruptions, rounds, counts, and models that need no tuning."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM

from neurontune_peft import Neurons, NeuronTuneConfig, fit_trigger
from neurontune_peft.cli import choosing, main, tune, tuning
from neurontune_peft.hub.evidence import tune_command
from neurontune_peft.prompts import Prompt
from neurontune_peft.training import Log
from neurontune_peft.training.resistance import NothingToLearnError

QUICK = ["--steps", "2", "--inner-steps", "1", "--max-new-tokens", "4", "--counts", "safety=6", "utility=2"]
QUICK += ["--modulation", "static"]


@pytest.fixture(autouse=True)
def _caches_here(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def call(tmp_path):
    """Runs the command on a tiny model; returns its exit code and its output directory."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")

    def run(name: str, *options: str) -> tuple[int, Path]:
        output = tmp_path / name
        given = ["tune", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts"), "--output", str(output)]
        return main([*given, *QUICK, *options]), output

    return run


def adapter(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")}


@pytest.mark.parametrize(
    ("module", "step"), [(choosing, "attribute"), (tuning, "meta_train"), (tuning, "write_report")]
)
def test_a_run_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(call, monkeypatch, module, step):
    _, whole = call("whole")
    with monkeypatch.context() as patch:

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(module, step, interrupt)
        assert call("cut")[0] == 130
    done = {path.name for path in (whole.parent / ".cut.resume").iterdir()}
    assert "base.json" in done
    assert ("round-1.safetensors" in done) == (step != "attribute")
    if step == "write_report":  # everything is there but the output; nothing is computed again

        def fail(*args, **kwargs):
            raise AssertionError("scored again")

        monkeypatch.setattr(choosing, "attribute", fail)
    code, cut = call("cut")
    assert code == 0
    assert adapter(cut) == adapter(whole)
    assert not (whole.parent / ".cut.resume").exists()


def test_what_another_run_left_is_not_mixed_in(call, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "meta_train", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call("cut")[0] == 130
    code, output = call("cut", "--seed", "1")
    assert code == 2
    assert "left by an interrupted run with other options" in capsys.readouterr().err
    assert not output.exists()
    assert call("cut")[0] == 0


def test_rounds_extend_the_set_with_neurons_scored_under_the_scales_so_far(call):
    _, one = call("one")
    code, two = call("two", "--rounds", "2")
    assert code == 0
    first, both = Neurons.load(one / "neurons.json"), Neurons.load(two / "neurons.json")
    assert both.totals == first.totals == {"safety": 6, "utility": 2}
    assert both.ranked("safety")[:3] == first.ranked("safety")[:3]
    assert len(Log.load(two / "log-1.json").steps) == len(Log.load(two / "log.json").steps) == 2


def test_the_report_shows_what_the_first_neurons_of_each_role_do_alone(call):
    _, output = call("out", "--shares", "0.5")
    report = json.loads((output / "report.json").read_text())
    assert list(report["counts"]) == ["0.5"]
    lines = (output / "report.md").read_text().splitlines()
    table = [line.split("|")[1].strip() for line in lines if line.startswith(("| 0 |", "| 0.5 |", "| 1 |"))]
    assert table == ["0", "0.5", "1"]


def test_neurons_that_the_penalty_switches_off_leave_the_file(call):
    _, output = call("out", "--l1", "0.9", "--lr", "0.05", "--steps", "4")
    assert Neurons.load(output / "neurons.json").total < 8


def test_a_model_that_resists_already_is_left_alone_unless_forced(call, monkeypatch, capsys):
    def resists(*args, **kwargs):
        raise NothingToLearnError("got a model that refuses 100% of 9 train attacks; expected …; use it as it is")

    monkeypatch.setattr(tuning, "check_learnable", resists)
    code, output = call("out")
    assert code == 2
    assert "got a model that refuses 100%" in capsys.readouterr().err
    assert not output.exists()
    assert call("out", "--force")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shares", "1.5"], "expected shares between 0 and 1"),
        (["--rounds", "0"], "at least one"),
        (["--reading-share", "1"], "expected a share from 0 to below 1"),
        (["--method", "magic"], "got method 'magic'"),
        (["--counts", "mood=3"], "got role 'mood'"),
    ],
)
def test_a_wrong_call_is_refused_before_the_model_is_measured(call, monkeypatch, capsys, options, message):
    monkeypatch.setattr(tuning, "evaluate", lambda *args, **kwargs: pytest.fail("measured"))
    assert call("out", *options)[0] == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def many_requests(tmp_path, call):
    """As many train requests as a trigger takes, told apart by their last letters."""
    given = tiny_prompt_set()
    more = [Prompt(f"h-{i}", f"Break {i} zz!zz!", "harmful", None, "train") for i in range(44)]
    more += [Prompt(f"b-{i}", f"Mend {i} ab.ab.", "benign", "Yes.", "train") for i in range(80)]
    replace(given, prompts=given.prompts + tuple(more)).save(tmp_path / "prompts")


def test_by_default_only_requests_that_trigger_are_scaled(call, many_requests, tmp_path, capsys):
    code, output = call("out", "--modulation", "dynamic")
    assert code == 0
    assert "Trigger (dynamic): AUC" in capsys.readouterr().out
    assert "## Trigger" in (output / "report.md").read_text()
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["modulation"], config["strength_on"], config["format_version"]) == ("dynamic", 1.5, 3)
    assert config["provenance"]["trigger"]["budget"] == 0.08
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), output)
    assert set(model.get_trigger()) == set(model.get_neurons().sites)
    assert main(["inspect", str(output)]) == 0
    assert "dynamic: strength 1.5 for requests that trigger" in capsys.readouterr().out


def test_half_of_the_safety_neurons_are_chosen_for_reading_and_come_behind_those_that_move_answers(
    call, many_requests, monkeypatch
):
    _, without = call("without", "--modulation", "dynamic", "--reading-share", "0")
    code, half = call("half", "--modulation", "dynamic")
    assert code == 0
    scored, both = Neurons.load(without / "neurons.json"), Neurons.load(half / "neurons.json")
    assert both.totals == scored.totals == {"safety": 6, "utility": 2}
    assert both.ranked("safety")[:3] == scored.ranked("safety")[:3]
    assert both.ranked("safety") != scored.ranked("safety")
    assert NeuronTuneConfig.from_pretrained(half).provenance["selection"]["reading_share"] == 0.5

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "fit_trigger", interrupt)
        assert call("cut", "--modulation", "dynamic")[0] == 130
        patch.setattr(choosing, "reading_scores", lambda *args, **kwargs: pytest.fail("chosen again"))
        patch.setattr(tuning, "fit_trigger", fit_trigger)
        assert call("cut", "--modulation", "dynamic")[0] == 0
    assert adapter(half.parent / "cut") == adapter(half)


def test_the_budgets_of_the_trigger_are_kept_and_stand_in_the_command_that_repeats_the_run(call, many_requests):
    budgets = ["--false-positive-budget", "0.3", "--full-strength-budget", "0.3", "--nearly-flagged", "0.5"]
    budgets += ["--reading-share", "0.25", "--trigger-window", "8"]
    code, output = call("out", "--modulation", "dynamic", *budgets)
    assert code == 0
    config = NeuronTuneConfig.from_pretrained(output)
    assert (config.trigger_gate, config.trigger_ramp) == ("step", 0.0)
    assert config.provenance["trigger"]["budget"] == 0.3
    assert config.trigger_window == 8
    words = shlex.split(tune_command(config))
    for flag, value in zip(budgets[::2], budgets[1::2], strict=True):
        assert words[words.index(flag) + 1] == value


def test_the_command_that_repeats_a_run_names_options_that_were_none():
    selection = {"counts": {"safety": 0.03}, "spread": None, "trigger_window": None}
    config = NeuronTuneConfig(provenance={"selection": selection, "training": {}}, base_model_name_or_path="user/base")
    words = shlex.split(tune_command(config))
    assert [words[words.index(flag) + 1] for flag in ("--spread", "--trigger-window")] == ["None", "None"]
    assert "--reading-share" not in words  # older versions wrote no such setting


@pytest.mark.parametrize("name", ["false-positive-budget", "full-strength-budget"])
def test_an_impossible_budget_of_the_trigger_is_refused_before_the_model_is_loaded(call, monkeypatch, capsys, name):
    monkeypatch.setattr(tune.Tune, "load", lambda self: pytest.fail("loaded"))
    assert call("out", "--modulation", "dynamic", f"--{name}", "1.5")[0] == 2
    assert f"got {name.replace('-', '_')}=1.5; expected a share between 0 and 1" in capsys.readouterr().err


def test_too_few_requests_for_a_trigger_are_refused_before_the_model_is_loaded(call, monkeypatch, capsys):
    monkeypatch.setattr(tune.Tune, "load", lambda self: pytest.fail("loaded"))
    assert call("out", "--modulation", "dynamic")[0] == 2
    assert "harmless train requests to calibrate the trigger on" in capsys.readouterr().err


def test_evaluate_says_that_a_trigger_does_not_know_this_chat_template(call, many_requests, tmp_path, capsys):
    _, output = call("out", "--modulation", "dynamic")
    options = ["--prompts", str(tmp_path / "prompts"), "--adapter", str(output), "--max-new-tokens", "4"]
    options += ["--chat-template", "{{ messages[0]['content'] }}{% if add_generation_prompt %}<user>{% endif %}"]
    with pytest.warns(UserWarning, match="got a tokenizer whose prompts end in"):
        assert main(["evaluate", str(tmp_path / "model"), *options]) == 0
    assert main(["evaluate", str(tmp_path / "model"), *options, "--strict"]) == 2
    assert "got a tokenizer whose prompts end in" in capsys.readouterr().err
