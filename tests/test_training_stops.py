"""Runs that make no sense stop and say why, or are not begun."""

from dataclasses import replace

import pytest
import torch
from training_helpers import PROMPTS, SMALL, TOKENIZER, peft_model, toy_deltas, values_of

from neurontune_peft.prompts import Attack, Prompt
from neurontune_peft.training import MetaConfig, NothingToLearnError, check_learnable, loop, meta_train
from neurontune_peft.training.inner import Task
from neurontune_peft.training.state import LoopState

UTILITY = {"kl": 0.0, "nll": 0.0}


def toy_task(loss):
    return Task("toy", loss, loss, lambda values: {name: values[0].sum() * 0 for name in UTILITY})


def test_a_diverging_rate_stops_and_falls_back_on_the_lowest_stretch():
    deltas = toy_deltas(torch.tensor([1.0]))
    state = LoopState(deltas, torch.optim.SGD(deltas.parameters, lr=1.0))
    seen = []

    def loss(values):
        seen.append(values[0].item())
        return values[0].square().sum() * (1.0 if len(seen) < 40 else 1.25)  # steps of 2.5: it overshoots

    reason = loop.learn(state, lambda number: toy_task(loss), MetaConfig(order="none", steps=400, lr=1.0))
    assert reason.startswith("diverged at step ")
    assert "lower lr=1" in reason
    assert f"after {state.kept_step} steps are kept" in reason
    parts = [state.course[max(0, i - 4) : i + 1] for i in range(len(state.course))]
    means = [sum(part) / len(part) for part in parts]
    assert state.kept_step == means.index(min(means))
    state.finish()
    assert abs(deltas.parameters[0].item()) <= 1
    assert len(state.history) < 400


def test_an_easy_first_family_is_not_taken_for_the_measure():
    deltas = toy_deltas(torch.tensor([0.0]))
    state = LoopState(deltas, torch.optim.SGD(deltas.parameters, lr=0.0))
    config = MetaConfig(order="none", steps=40, lr=0.0)

    def draw(number):
        return toy_task(lambda values: values[0].sum() * 0 + (0.1 if number == 0 else 8.0))

    assert loop.learn(state, draw, config) == ""
    assert len(state.history) == 40


def test_a_run_that_gets_worse_within_reason_goes_on():
    deltas = toy_deltas(torch.tensor([0.0]))
    state = LoopState(deltas, torch.optim.SGD(deltas.parameters, lr=0.0))
    task = toy_task(lambda values: values[0].sum() * 0 + 1 + 1.5 * len(state.history) / 40)
    assert loop.learn(state, lambda number: task, MetaConfig(order="none", steps=40, lr=0.0)) == ""
    assert state.kept is None


def test_a_diverging_model_run_says_so_in_its_log():
    model = peft_model()
    config = replace(SMALL, lr=20.0, steps=60, bounds={}, order="none", utility_weight=300.0, nll_weight=0.0)
    log = meta_train(model, TOKENIZER, PROMPTS, config)
    assert log.stopped.startswith("diverged at step")
    assert 5 <= len(log.steps) < 60
    assert log.stopped in str(log)
    assert torch.isfinite(values_of(model)).all()
    assert log.kept_step is not None


def test_a_diverged_run_resumes_into_the_same_end(tmp_path):
    config = replace(
        SMALL, lr=20.0, steps=60, bounds={}, order="none", utility_weight=300.0, nll_weight=0.0, checkpoint_every=1
    )
    one, two = peft_model(), peft_model()
    log = meta_train(one, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    assert log.stopped
    again = meta_train(two, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    assert log == again
    assert torch.equal(values_of(one), values_of(two))


def answering(answer):
    return lambda model, tokenizer, texts, **options: [answer] * len(texts)


def test_a_model_that_resists_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("neurontune_peft.training.resistance.generate_answers", answering("I'm sorry, but no."))
    with pytest.raises(NothingToLearnError, match=r"refuses 100% of 6 train attacks.*nothing to learn"):
        check_learnable(peft_model(), TOKENIZER, PROMPTS)
    assert issubclass(NothingToLearnError, ValueError)


def test_a_model_that_complies_can_be_trained_and_its_share_is_told(monkeypatch):
    asked = []

    def answers(model, tokenizer, texts, **options):
        asked.extend(texts)
        return ["Sure."] * (len(texts) - 2) + ["I cannot."] * 2

    monkeypatch.setattr("neurontune_peft.training.resistance.generate_answers", answers)
    assert check_learnable(peft_model(), TOKENIZER, PROMPTS) == pytest.approx(4 / 6)
    assert not [text for text in asked for prompt in PROMPTS.select(split="test") if prompt.prompt in text]
    assert not [text for text in asked if "Rex" in text or "Begin with Yes" in text]


def test_a_real_model_is_asked():
    assert check_learnable(peft_model(), TOKENIZER, PROMPTS) == 1.0


def test_an_empty_support_or_query_is_refused():
    others = [p for p in PROMPTS.prompts if p.kind != "harmful"]
    one = (*others, Prompt("h", "Break.", "harmful", None, "train"))
    with pytest.raises(ValueError, match="expected at least two, one and one"):
        meta_train(peft_model(), TOKENIZER, replace(PROMPTS, prompts=one), SMALL)
    for size in ("support_size", "query_size"):
        with pytest.raises(ValueError, match=f"got {size}=0"):
            MetaConfig(**{size: 0})


def test_a_family_with_one_attackable_prompt_is_left_out():
    lonely = Attack("lonely", "l-0", "train", prompt_id="ht-0", attacked_prompt="!! Break !!")
    prompts = replace(PROMPTS, attacks=(*PROMPTS.attacks, lonely))
    log = meta_train(peft_model(), TOKENIZER, prompts, SMALL)
    assert {step.family for step in log.steps} == {"prefix", "persona"}
