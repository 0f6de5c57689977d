"""Variants of training: each changes what its name says, and nothing else."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_llama
from peft import get_peft_model
from training_helpers import PROMPTS, SITES, SMALL, TOKENIZER, peft_model, toy_deltas, values_of
from transformers import MixtralConfig, MixtralForCausalLM

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.neurons import Neurons
from neurontune_peft.prompts import encode
from neurontune_peft.training import MetaConfig, meta_train
from neurontune_peft.training.clusters import activation_profiles, cluster_neurons, k_means, tied_view
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.inner import Task, inner_step, through_inner_steps
from neurontune_peft.training.losses import answer_loss
from neurontune_peft.training.refusals import margin_of
from neurontune_peft.training.tasks import TaskSampler
from neurontune_peft.training.views import zeroed_view

BATCH = encode(TOKENIZER, ["Break it.", "What is the number one?"], ["No.", "A number."])


def test_the_margin_joins_the_safety_loss():
    torch.manual_seed(1)
    model = peft_model(init_weights=False)
    deltas, margin = find_deltas(model, {}), margin_of(TOKENIZER, PROMPTS, 2)
    sampler = TaskSampler(PROMPTS, SMALL, ("No.",))
    config = replace(SMALL, margin_weight=0.5)
    task = Families(model, TOKENIZER, deltas, sampler, config, margin=margin).draw(0)
    data = sampler.draw(0)
    for pairs, loss in ((data.support, task.support), (data.query, task.query), (data.plain, task.plain)):
        texts, answers = zip(*pairs, strict=True)
        nll = answer_loss(model, encode(TOKENIZER, texts, answers), first_token_weight=4.0)
        pushed = torch.log1p(torch.exp(-margin(model, encode(TOKENIZER, texts)))).mean()
        torch.testing.assert_close(loss(deltas.parameters), nll + 0.5 * pushed)


def test_the_focus_is_that_of_every_refusing_loss_and_of_no_other():
    torch.manual_seed(1)
    model = peft_model(init_weights=False)
    deltas, sampler = find_deltas(model, {}), TaskSampler(PROMPTS, replace(SMALL, support_size=2), ("No.",))
    plainly, focused = (
        Families(model, TOKENIZER, deltas, sampler, replace(SMALL, support_size=2, focus=focus)).draw(0)
        for focus in (1.0, 2.0)
    )
    data, values = sampler.draw(0), deltas.parameters
    for pairs, loss in ((data.support, focused.support), (data.query, focused.query), (data.plain, focused.plain)):
        each = [answer_loss(model, encode(TOKENIZER, [t], [a]), first_token_weight=4.0) for t, a in pairs]
        torch.testing.assert_close(loss(values), torch.stack(each).square().mean())
    for name, cost in plainly.costs(values).items():
        torch.testing.assert_close(focused.costs(values)[name], cost)


def test_signed_safety_neurons_may_be_turned_down_to_off():
    assert MetaConfig(signed=True).limits == {"safety": (-1.0, 2.0), "utility": (-0.5, 0.0)}
    assert MetaConfig().limits == MetaConfig().bounds
    model = peft_model()
    meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, signed=True, lr=0.3, steps=12))
    safety = torch.cat([layer.neurontune_delta["default"][:12] for layer in layers_of(model)])
    assert -1.0 <= safety.min() < 0


def layers_of(model):
    return [model.get_submodule(f"base_model.model.{site}") for site in SITES]


def test_without_attacks_no_template_is_seen():
    config = replace(SMALL, attacks=False, support_size=2)
    sampler = TaskSampler(PROMPTS, config, ("No.",))
    data = sampler.draw(0)
    assert data.family == "plain"
    assert {text for text, _ in data.support + data.query} <= {p.prompt for p in PROMPTS.select(kind="harmful")}
    assert not {text for text, _ in data.support} & {text for text, _ in data.query}
    assert "wrapped" not in data.kinds
    log = meta_train(peft_model(), TOKENIZER, PROMPTS, replace(config, validate_every=3))
    assert {step.family for step in log.steps} == {"plain"}
    assert log.config["order"] == "none"
    assert log.prompt_set == PROMPTS.fingerprint


def test_zeroed_neurons_are_off_and_a_share_of_all():
    model = peft_model(init_weights=False)
    values = find_deltas(model, {}).parameters
    seen = torch.cat(list(zeroed_view([18, 18], 0.25, "0-1")(values)))
    assert int((seen == -1).sum()) == 9
    assert torch.equal(seen[seen != -1], torch.cat(list(values))[seen != -1])
    assert torch.equal(seen, torch.cat(list(zeroed_view([18, 18], 0.25, "0-1")(values))))
    assert not torch.equal(seen, torch.cat(list(zeroed_view([18, 18], 0.25, "0-2")(values))))


@pytest.mark.parametrize("order", ["first", "second", "none"])
def test_training_under_zeroing_differs_and_repeats(order):
    runs = []
    for share in (0.5, 0.5, 0.0):
        model = peft_model()
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, zero_share=share, steps=3, order=order))
        runs.append(values_of(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_fine_tuning_climbs_the_support_loss_before_the_query():
    target = torch.tensor([1.0, 2.0, -1.0])

    def loss(values):
        return (values[0] - target).square().sum()

    deltas = toy_deltas(torch.tensor([0.1, -0.2, 0.3]))
    task = Task("toy", loss, loss, lambda values: {})
    config = MetaConfig(inner_steps=1, inner_lr=0.1, finetune_steps=2, support_weight=0.0)
    values = [deltas.parameters[0].detach()]
    for lr in (0.1, -0.1, -0.1):
        values = inner_step(deltas, values, [2 * (values[0] - target)], lr, keep_graph=True)
    found = through_inner_steps(deltas, task, config)
    assert found.loss == pytest.approx(loss(values).item())
    torch.testing.assert_close(found.gradients[0], 2 * (values[0] - target))
    assert found.loss > through_inner_steps(deltas, task, replace(config, finetune_steps=0)).loss


def test_k_means_finds_clusters_that_are_there():
    torch.manual_seed(0)
    centres = torch.eye(4)[:3] * 5
    truth = torch.arange(30) % 3
    points = centres[truth] + 0.1 * torch.randn(30, 4)
    for seed in range(5):
        labels = k_means(points, 3, seed=seed)
        assert torch.equal(labels[:, None] == labels, truth[:, None] == truth)
    assert torch.equal(k_means(points, 3, seed=1), k_means(points, 3, seed=1))
    assert k_means(points[:2], 8, seed=0).tolist() in ([0, 1], [1, 0])
    assert k_means(torch.ones(4, 2), 3, seed=0).tolist() == [0, 0, 0, 0]


def test_profiles_are_the_activations_at_the_last_prompt_token():
    torch.manual_seed(1)
    model = peft_model(init_weights=False)
    profiles = activation_profiles(model, [BATCH, encode(TOKENIZER, ["Hm."], ["No."])])
    base, seen = tiny_llama(), []
    base.get_submodule(SITES[1]).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    alone = encode(TOKENIZER, ["What is the number one?"])
    base(input_ids=alone.input_ids)
    index = layers_of(model)[1].neurontune_index["default"]
    torch.testing.assert_close(profiles[1][:, 1], seen[0][0, -1, index])
    assert [profile.shape for profile in profiles] == [(18, 3), (18, 3)]
    assert not any(layer._forward_pre_hooks for layer in layers_of(model))


@pytest.mark.parametrize("order", ["first", "second", "none"])
def test_tied_neurons_share_one_delta(order):
    model = peft_model()
    config = replace(SMALL, tie="cluster", clusters=3, order=order, nested=order == "first")
    meta_train(model, TOKENIZER, PROMPTS, config)
    assert 1 < len(values_of(model).unique()) <= 6 + 1
    safety = torch.cat([layer.neurontune_delta["default"][:12] for layer in layers_of(model)])
    assert len(safety.unique()) <= 3
    again = peft_model()
    meta_train(again, TOKENIZER, PROMPTS, config)
    assert torch.equal(values_of(model), values_of(again))


def test_clusters_never_mix_roles_and_average_gradients():
    model = peft_model()
    labels = cluster_neurons(model, [BATCH], clusters=4, seed=0)
    safety, utility = (torch.cat([label[part] for label in labels]) for part in (slice(0, 12), slice(12, 18)))
    assert not set(safety.tolist()) & set(utility.tolist())
    values = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([6.0], requires_grad=True)]
    seen = tied_view([torch.tensor([0, 1]), torch.tensor([0])])(values)
    assert [part.tolist() for part in seen] == [[3.5, 2.0], [3.5]]
    gradients = torch.autograd.grad(seen[0][0] * 4, values)
    assert [part.tolist() for part in gradients] == [[2.0, 0.0], [2.0]]


def test_deltas_that_differ_are_tied_at_the_start():
    torch.manual_seed(1)
    model = peft_model(init_weights=False)
    meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, tie="cluster", clusters=1, bounds={}, steps=1))
    assert len(values_of(model).unique()) == 2


def test_fused_experts_cannot_be_tied():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=261,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        pad_token_id=0,
    )
    site = "model.layers.0.mlp.experts"
    neurons = Neurons.from_ranked({"safety": [(site, 0), (site, 9)]}, widths={site: 16})
    model = get_peft_model(MixtralForCausalLM(config).eval(), NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    with pytest.raises(ValueError, match=r"tie='cluster' with Experts.*use tie='none'"):
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, tie="cluster"))


def test_variants_work_together():
    model = peft_model()
    config = replace(
        SMALL,
        margin_weight=0.5,
        signed=True,
        tie="cluster",
        zero_share=0.2,
        finetune_steps=1,
        nested=True,
        ema=0.5,
        kl_budget=0.1,
    )
    log = meta_train(model, TOKENIZER, PROMPTS, config)
    assert len(log.steps) == 6
    assert torch.isfinite(values_of(model)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie": "layer"}, "got tie='layer'"),
        ({"clusters": 0}, "got clusters=0"),
        ({"zero_share": 1.0}, "expected less than 1"),
        ({"finetune_steps": -1}, "got finetune_steps=-1"),
        ({"finetune_steps": 1, "order": "none"}, "order='none', which measures nothing after inner steps"),
        ({"finetune_steps": 1, "order": "reptile"}, "order='reptile', which measures nothing after inner steps"),
        ({"margin_weight": -1.0}, "got margin_weight"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)
