"""Averages and exact zeros: closed forms, and an adapter that shrinks without computing anything else."""

from dataclasses import replace

import pytest
import torch
from training_helpers import PROMPTS, SITES, SMALL, TOKENIZER, interrupted_after, peft_model, toy_deltas, values_of

from neurontune_peft.objectives import response_logits
from neurontune_peft.prompts import encode
from neurontune_peft.training import MetaConfig, drop_zeros, loop, meta_train, without_zeros
from neurontune_peft.training.inner import Task
from neurontune_peft.training.outer import Outer
from neurontune_peft.training.sparsity import shrink_
from neurontune_peft.training.state import LoopState

BATCH = encode(TOKENIZER, ["Break it.", "What is 1?"], ["No.", "A number."])


def test_the_average_is_its_closed_form():
    deltas = toy_deltas(torch.tensor([0.0]))
    state = LoopState(deltas, torch.optim.Adam(deltas.parameters))
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            deltas.parameters[0].fill_(value)
        state.follow(0.5)
    assert state.average[0].item() == 0.25 * 1 + 0.25 * 2 + 0.5 * 4
    with torch.no_grad():
        deltas.parameters[0].zero_()
    assert state.shipped[0].item() == 0.0  # what the penalty has switched off stays off
    state.finish()
    assert deltas.parameters[0].item() == 0.0


def test_training_ships_the_average(monkeypatch):
    seen = []
    original = loop.update

    def noted(state, outer, config):
        original(state, outer, config)
        seen.append(torch.cat([parameter.detach().clone() for parameter in state.deltas.parameters]))

    monkeypatch.setattr(loop, "update", noted)
    model = peft_model()
    meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, steps=4, ema=0.8))
    expected = seen[0]
    for value in seen[1:]:
        expected = 0.8 * expected + 0.2 * value
    torch.testing.assert_close(values_of(model), expected * (seen[-1] != 0))
    assert not torch.allclose(values_of(model), seen[-1])


def test_validation_looks_at_the_average():
    averaged = peft_model()
    log = meta_train(averaged, TOKENIZER, PROMPTS, replace(SMALL, ema=0.9, validate_every=1))
    plain = meta_train(peft_model(), TOKENIZER, PROMPTS, replace(SMALL, validate_every=1))
    assert log.validations[1] == plain.validations[1]
    assert log.validations[2] != plain.validations[2]


def test_an_averaged_and_sparse_run_resumes_with_the_same_bits(tmp_path, monkeypatch):
    config = replace(SMALL, ema=0.7, l1=0.1)
    whole, stopped = peft_model(), peft_model()
    log = meta_train(whole, TOKENIZER, PROMPTS, config)
    with interrupted_after(3, monkeypatch):
        meta_train(stopped, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    assert meta_train(stopped, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run") == log
    assert torch.equal(values_of(whole), values_of(stopped))


def test_the_penalty_is_soft_thresholding():
    deltas = toy_deltas(torch.tensor([0.5, -0.25, 0.125, -0.0625, 0.0]))
    shrink_(deltas, 0.125)
    assert deltas.parameters[0].tolist() == [0.375, -0.125, 0.0, 0.0, 0.0]


def test_the_penalty_finds_the_optimum_of_a_lasso():
    """Minimise (x - c)^2 / 2 + l1 |x|: x = sign(c) max(|c| - l1, 0), exactly 0 where |c| <= l1."""
    target = torch.tensor([1.0, -0.8, 0.2, -0.1])
    deltas = toy_deltas(torch.zeros(4))
    state = LoopState(deltas, torch.optim.SGD(deltas.parameters, lr=0.1))

    def loss(values):
        return (values[0] - target).square().sum() / 2

    zero = {"kl": torch.zeros(()), "nll": torch.zeros(())}
    task = Task("toy", loss, loss, lambda values: {name: cost + values[0].sum() * 0 for name, cost in zero.items()})
    loop.learn(state, lambda number: task, MetaConfig(order="none", steps=200, lr=0.1, l1=0.3))
    torch.testing.assert_close(deltas.parameters[0].detach(), torch.tensor([0.7, -0.5, 0.0, 0.0]), atol=1e-3, rtol=0)
    assert deltas.parameters[0][2:].tolist() == [0.0, 0.0]


def sparse_model():
    model = peft_model()
    log = meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, steps=12, l1=0.6))
    assert len(log.steps) == 12
    return model


def test_dropping_zeros_shrinks_the_file_and_changes_nothing(tmp_path):
    model = sparse_model()
    needed = int((values_of(model) != 0).sum())
    assert 0 < needed < 36
    neurons = drop_zeros(model)
    assert neurons.total == needed
    for role in neurons.roles:
        before = [pair for pair in model.base_model.get_neurons().ranked(role) if pair in neurons.ranked(role)]
        assert neurons.ranked(role) == before
    before = response_logits(model, BATCH)
    model.save_pretrained(tmp_path / "large")
    smaller = without_zeros(model)
    smaller.save_pretrained(tmp_path / "small")
    assert torch.equal(response_logits(smaller, BATCH), before)
    assert smaller.base_model.get_neurons().counts == neurons.counts
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("large", "small")]
    assert sizes[1] < sizes[0]
    assert smaller.active_adapter == "default"
    assert all(parameter.requires_grad for name, parameter in smaller.named_parameters() if "delta" in name)


def test_an_identity_has_nothing_to_keep():
    model = peft_model()
    with pytest.raises(ValueError, match=r"all 0.*train it"):
        drop_zeros(model)
    with pytest.raises(ValueError, match="all 0"):
        without_zeros(model)
    assert set(SITES) == set(model.base_model.get_neurons().sites)


def test_a_second_adapter_is_not_taken_off_unasked():
    model = peft_model(init_weights=False)
    model.add_adapter("other", model.peft_config["default"])
    with pytest.raises(ValueError, match=r"delete the others first"):
        without_zeros(model)


def test_projection_is_the_nearest_point_within_the_bounds():
    deltas = toy_deltas(torch.tensor([-0.7, 0.3, 2.5]), low=-0.5, high=2.0)
    state = LoopState(deltas, torch.optim.SGD(deltas.parameters, lr=1.0))
    loop.update(state, Outer("toy", gradients=[torch.zeros(3)], safety=0.0), MetaConfig())
    torch.testing.assert_close(deltas.parameters[0].detach(), torch.tensor([-0.5, 0.3, 2.0]))


@pytest.mark.parametrize("options", [{"ema": 1.0}, {"ema": -0.1}, {"l1": -1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=f"got {next(iter(options))}="):
        MetaConfig(**options)
