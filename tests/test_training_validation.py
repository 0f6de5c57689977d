"""The kept step is the one that does best on what was held back, and nothing of the test split is looked at."""

from dataclasses import replace

import pytest
import torch
from training_helpers import PROMPTS, SMALL, TOKENIZER, interrupted_after, peft_model, toy_deltas, values_of

from neurontune_peft.prompts import Attack, PromptSet
from neurontune_peft.training import Log, MetaConfig, loop, meta_train
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.inner import Task
from neurontune_peft.training.state import LoopState
from neurontune_peft.training.tasks import TaskSampler
from neurontune_peft.training.validation import Validation, Validator, split_validation

VALIDATED = replace(SMALL, validate_every=2, lr=0.1)


@pytest.mark.parametrize("validation", ["templates", "family"])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_validation_share_no_prompt_and_no_template(validation, seed):
    config = replace(VALIDATED, validation=validation, seed=seed)
    train, held = split_validation(PROMPTS, config)
    shared = {p.id for p in train.prompts} & {p.id for p in held.prompts}
    assert shared == {"ot-0"}  # the only borderline prompt
    assert {p.kind for p in held.prompts} == {"harmful", "benign", "borderline"}
    assert {p.split for p in (*train.prompts, *held.prompts, *train.attacks, *held.attacks)} == {"train"}
    ours, theirs = ({a.name for a in part.attacks} for part in (train, held))
    if validation == "family":
        assert not {a.family for a in train.attacks} & {a.family for a in held.attacks}
        assert {a.family for a in held.attacks} == {("prefix", "persona")[seed]}
    else:
        assert theirs == {f"prefix-train-{seed}", "persona-train-0"}
        assert ours == {f"prefix-train-{1 - seed}", "persona-train-0"}  # persona has one template only


def test_attacks_made_for_one_request_follow_it():
    made = tuple(
        Attack("optimised", f"o-{i}", "train", prompt_id=f"ht-{i}", attacked_prompt=f"!! {i}") for i in (0, 1, 2)
    )
    train, held = split_validation(PromptSet(PROMPTS.prompts, made, PROMPTS.phrases), VALIDATED)
    assert {a.prompt_id for a in held.attacks} == {p.id for p in held.select(kind="harmful")}
    assert {a.prompt_id for a in train.attacks} == {p.id for p in train.select(kind="harmful")}


def test_the_validated_numbers_are_those_of_the_kept_deltas():
    model = peft_model()
    log = meta_train(model, TOKENIZER, PROMPTS, VALIDATED)
    assert [entry.step for entry in log.validations] == [0, 2, 4, 6]
    assert log.validations[0].costs["kl"] == pytest.approx(0, abs=1e-6)
    scores = {entry.step: entry.safety + 3 * entry.utility for entry in log.validations}
    assert log.kept_step == min(scores, key=scores.get)
    _, held = split_validation(PROMPTS, VALIDATED)
    deltas = find_deltas(model, {})
    families = Families(model, TOKENIZER, deltas, TaskSampler(PROMPTS, VALIDATED, ("No.",)), VALIDATED)
    again = Validator(families, held, PROMPTS.phrases.refusal)(deltas.parameters)
    kept = next(entry for entry in log.validations if entry.step == log.kept_step)
    assert (again.safety, again.costs) == (kept.safety, kept.costs)


def test_the_best_step_is_kept_not_the_last():
    deltas = toy_deltas(torch.zeros(1))
    state = LoopState(deltas, torch.optim.Adam(deltas.parameters, lr=0.1))
    zero = {"kl": torch.zeros(()), "nll": torch.zeros(())}

    def loss(values):
        return -values[0].sum()

    def costs(values):
        return {name: value + 0 * values[0].sum() for name, value in zero.items()}

    def validate(values):
        return Validation(abs(values[0].item() - 0.3), {"kl": 0.0, "nll": 0.0})

    config = MetaConfig(order="none", steps=20, validate_every=1)
    loop.learn(state, lambda number: Task("toy", loss, loss, costs), config, validate=validate)
    assert deltas.parameters[0].item() > 0.5
    state.finish()
    best = min(state.validations, key=lambda entry: entry.safety)
    assert state.kept_step == best.step
    assert abs(deltas.parameters[0].item() - 0.3) == best.safety < 0.06


def test_a_run_with_validation_resumes_with_the_same_bits(tmp_path, monkeypatch):
    whole, stopped = peft_model(), peft_model()
    config = replace(VALIDATED, checkpoint_every=1, utility_weight=0.1)
    log = meta_train(whole, TOKENIZER, PROMPTS, config)
    with interrupted_after(3, monkeypatch):
        part = meta_train(stopped, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    assert part.validations == log.validations[:2]
    assert part.kept_step in (0, 2)
    assert meta_train(stopped, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run") == log
    assert torch.equal(values_of(whole), values_of(stopped))


def test_the_log_keeps_the_validations(tmp_path):
    log = meta_train(peft_model(), TOKENIZER, PROMPTS, replace(VALIDATED, steps=2))
    log.save(tmp_path / "log.json")
    assert Log.load(tmp_path / "log.json") == log
    assert f"kept the deltas after {log.kept_step} steps" in str(log)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validate_every": -1}, "got validate_every=-1"),
        ({"validation": "mine"}, "got validation='mine'"),
        ({"validation_share": 1.0}, "expected less than 1"),
        ({"focus": 0.5}, "got focus=0.5; expected a number of at least 1.0"),
        ({"validation_size": 0}, "got validation_size=0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)
