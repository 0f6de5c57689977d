"""What a step sees of the deltas: prefixes of the rankings."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from training_helpers import PROMPTS, SMALL, TOKENIZER, peft_model, values_of

from neurontune_peft.objectives import response_logits
from neurontune_peft.prompts import encode
from neurontune_peft.training import meta_train
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.tasks import TaskSampler
from neurontune_peft.training.views import SHARES, find_ranks, prefix_view

BATCH = encode(TOKENIZER, ["Break it.", "What is 1?"], ["No.", "A number."])


def random_model(**options):
    torch.manual_seed(3)
    return peft_model(init_weights=False, **options)


@pytest.mark.parametrize("share", SHARES)
def test_a_prefix_is_what_the_count_threshold_leaves_at_load_time(share):
    model = random_model()
    deltas, ranks = find_deltas(model, {}), find_ranks(model)
    seed = next(str(i) for i in range(99) if random.Random(f"{i}-share").choice(SHARES) == share)
    with deltas.replaced_by(prefix_view(ranks, seed)(deltas.parameters)):
        seen = response_logits(model, BATCH)
    model.set_neuron_counts(safety=int(24 * share), utility=-int(-12 * share // 1))
    assert torch.equal(seen, response_logits(model, BATCH))
    model.set_neuron_counts(safety=None, utility=None)
    assert (share == 1) == torch.equal(seen, response_logits(model, BATCH))


def test_prefixes_are_nested_and_every_share_keeps_a_neuron_of_each_role():
    model = peft_model(neurons_per_role=1)
    ranks = find_ranks(model)
    kept = [torch.cat(ranks.within(share)) for share in SHARES]
    assert [int(mask.sum()) for mask in kept] == [1 + 2, 1 + 3, 1 + 6, 2 + 12]
    assert all((small <= large).all() for small, large in itertools.pairwise(kept))


def test_the_safety_losses_see_a_prefix_and_the_costs_see_all():
    model = random_model()
    deltas = find_deltas(model, {})
    config = replace(SMALL, nested=True)
    sampler = TaskSampler(PROMPTS, config, ("Sorry, no.",))
    values = deltas.parameters
    number = next(i for i in range(99) if random.Random(f"0-{i}-share").choice(SHARES) == 1 / 8)
    task = Families(model, TOKENIZER, deltas, sampler, config).draw(number)
    plain = Families(model, TOKENIZER, deltas, sampler, SMALL).draw(number)
    assert task.costs(values)["kl"] == plain.costs(values)["kl"]
    for loss in (task.support, task.query, task.plain):
        with task.safety_at(values):
            value = loss(values)
            gradients = torch.autograd.grad(value, values)
        model.set_neuron_counts(safety=3, utility=2)
        assert value.item() == loss(values).item()
        model.set_neuron_counts(safety=None, utility=None)
        moved = torch.cat([gradient != 0 for gradient in gradients])
        assert torch.equal(moved, torch.cat(find_ranks(model).within(1 / 8)))


@pytest.mark.parametrize("order", ["first", "second", "none"])
def test_training_with_drawn_prefixes_moves_the_first_neurons_most(order):
    model = peft_model()
    log = meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, steps=16, order=order, nested=True, utility_weight=0))
    assert len(log.steps) == 16
    first = torch.cat(find_ranks(model).within(1 / 8))
    moved = values_of(model).abs()
    assert moved[first].mean() > moved[~first].mean()
    again = peft_model()
    meta_train(again, TOKENIZER, PROMPTS, replace(SMALL, steps=16, order=order, nested=True, utility_weight=0))
    assert torch.equal(values_of(model), values_of(again))
