"""An interrupted training goes on where it stopped, and ends as if it had never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from training_helpers import PROMPTS, SMALL, TOKENIZER, peft_model, values_of

from neurontune_peft.prompts import PromptSet
from neurontune_peft.training import Log, MetaConfig, loop, meta_train

RUN = replace(SMALL, steps=80, inner_steps=1, checkpoint_every=1, lr=0.02)
CHILD = """
import sys
import torch
from training_helpers import PROMPTS, TOKENIZER, peft_model
from test_training_checkpoint import RUN
from neurontune_peft.training import meta_train
torch.set_num_threads(int(sys.argv[2]))
meta_train(peft_model(), TOKENIZER, PROMPTS, RUN, checkpoint=sys.argv[1])
"""


def step_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["content"])["state"]["step"]


def interrupt_at(monkeypatch, step):
    """Ctrl-C in the middle of the update of a step."""
    original = loop.update

    def interrupted(state, outer, config):
        original(state, outer, config)
        if state.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "update", interrupted)


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", CHILD, str(path), str(torch.get_num_threads())]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as child:
        while not path.exists() or step_of(path) < 7:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    killed_at = step_of(path)
    assert 7 <= killed_at < 80
    resumed, whole = peft_model(), peft_model()
    first = meta_train(resumed, TOKENIZER, PROMPTS, RUN, checkpoint=path)
    second = meta_train(whole, TOKENIZER, PROMPTS, RUN)
    assert torch.equal(values_of(resumed), values_of(whole))
    assert first == second
    assert len(first.steps) == 80


@pytest.mark.parametrize("order", ["first", "none"])
def test_ctrl_c_keeps_the_deltas_of_whole_steps_and_says_how_to_go_on(order, tmp_path, monkeypatch):
    config, path = replace(SMALL, order=order), tmp_path / "run.safetensors"
    three, interrupted, whole = peft_model(), peft_model(), peft_model()
    reference = meta_train(whole, TOKENIZER, PROMPTS, config)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        log = meta_train(interrupted, TOKENIZER, PROMPTS, config, checkpoint=path)
        meta_train(three, TOKENIZER, PROMPTS, config)
    assert log.stopped == "interrupted after 3 of 6 steps"
    assert log.steps == reference.steps[:3]
    assert values_of(interrupted).any()
    assert torch.equal(values_of(interrupted), values_of(three))
    assert step_of(path) == 3
    again = meta_train(interrupted, TOKENIZER, PROMPTS, config, checkpoint=path)
    assert torch.equal(values_of(interrupted), values_of(whole))
    assert again == reference


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    one, two = peft_model(), peft_model()
    log = meta_train(one, TOKENIZER, PROMPTS, SMALL, checkpoint=tmp_path / "run")
    monkeypatch.setattr(loop, "outer_gradient", None)
    assert meta_train(two, TOKENIZER, PROMPTS, SMALL, checkpoint=tmp_path / "run") == log
    assert torch.equal(values_of(one), values_of(two))


def other_prompts():
    return PromptSet(PROMPTS.prompts[1:], PROMPTS.attacks, PROMPTS.phrases)


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(SMALL, lr=0.05)},
        {"prompts": other_prompts()},
        {"model": peft_model(neurons_per_role=5)},
        {"options": {"chat_template": "{{ messages[0]['content'] }}"}},
    ],
    ids=["config", "prompts", "neurons", "template"],
)
def test_a_checkpoint_of_another_run_is_refused(change, tmp_path):
    path = tmp_path / "run.safetensors"
    meta_train(peft_model(), TOKENIZER, PROMPTS, replace(SMALL, steps=1), checkpoint=path)
    kept = path.read_bytes()
    model = change.get("model", peft_model())
    config = replace(change.get("config", SMALL), steps=1)
    with pytest.raises(ValueError, match=r"a checkpoint of another run.*name another file"):
        meta_train(
            model, TOKENIZER, change.get("prompts", PROMPTS), config, checkpoint=path, **change.get("options", {})
        )
    assert not values_of(model).any()
    assert path.read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a checkpoint of this run"):
        meta_train(peft_model(), TOKENIZER, PROMPTS, SMALL, checkpoint=path)


def test_own_refusals_are_sampled_once(tmp_path, monkeypatch):
    asked = []

    def answers(model, tokenizer, prompts, **options):
        asked.append(prompts)
        return ["I cannot."] * len(prompts)

    monkeypatch.setattr("neurontune_peft.training.refusals.generate_answers", answers)
    config = replace(SMALL, refusal_targets="own")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        meta_train(peft_model(), TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    log = meta_train(peft_model(), TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    assert len(asked) == 1
    assert len(log.steps) == 6


def test_logs_of_older_runs_still_load(tmp_path):
    step = {"step": 0, "family": "a", "safety": 1.0, "utility": 0.0, "kl": 0.0, "nll": 0.0, "inner": []}
    content = {"steps": [step], "config": MetaConfig().to_dict(), "prompt_set": "x"}
    (tmp_path / "log.json").write_text(json.dumps(content))
    assert Log.load(tmp_path / "log.json").stopped == ""
