"""Scores of neurons inside fused experts: exact for every layout, whatever computes the experts."""

from dataclasses import replace

import pytest
import torch
from architectures import tokens
from test_experts import TYPES, moe_model, scale_columns, tuned
from torch import nn

from neurontune_peft import find_sites
from neurontune_peft.attribution import (
    activation_contrast,
    activation_path,
    causal,
    gate_gradients,
    gate_path,
    gradient,
    objective_on_path,
    pair,
    pooled,
    read_neurons,
    rms_change,
    routing_counts,
    snip,
    wanda,
)
from neurontune_peft.attribution.engine import gated, site_modules
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import RefusalMargin, target_log_prob
from neurontune_peft.prompts.batches import Batch, pad_rows

IMPLEMENTATIONS = [
    (model_type, implementation)
    for model_type in TYPES
    for implementation in ("eager", "batched_mm", "grouped_mm")
    if implementation == "eager" or model_type != "llama4_text"  # the only one that this class has
]
SHORT = ("mixtral", "gpt_oss", "llama4_text", "nemotron_h")  # one of each layout


def expert_sites(model: nn.Module) -> dict[str, Site]:
    return {name: site for name, site in find_sites(model).items() if site.kind == "experts"}


def prompts(rows: int = 3, length: int = 7, *, seed: int = 0, padding_side: str = "right") -> Batch:
    """Prompts of different lengths, each with a response of two tokens."""
    ids = tokens(batch=rows, length=length + 2, seed=seed).tolist()
    answers = tokens(batch=rows, length=2, seed=9).tolist()
    return pad_rows([row[: length - i] for i, row in enumerate(ids)], answers, pad_id=0, padding_side=padding_side)


def paired(rows: slice = slice(None), padding_side: str = "right"):
    attacked, plain = (prompts(seed=seed, length=n, padding_side=padding_side) for seed, n in ((0, 7), (1, 5)))
    return pair(cut(attacked, rows), cut(plain, rows))


def cut(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.response_mask[rows])


def spread(model: nn.Module, batch: Batch) -> torch.Tensor:
    """An objective in the model's own precision, for finite differences: mean square of the real tokens' logits."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return (logits.square().mean(dim=-1) * batch.attention_mask).sum(dim=1)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("model_type", "implementation"), IMPLEMENTATIONS)
def test_gates_of_one_leave_every_kind_of_experts_as_it_is(model_type, implementation):
    model = moe_model(model_type, implementation=implementation)
    sites, batch = expert_sites(model), prompts()
    gates = {name: torch.ones(3, site.width) for name, site in sites.items()}
    with torch.no_grad():
        expected = spread(model, batch)
        with gated(site_modules(model, sites), gates):
            close(spread(model, batch), expected, 2e-6)
        assert torch.equal(spread(model, batch), expected)  # and what was replaced is back
        with gated(site_modules(model, sites), {name: 0 * gate for name, gate in gates.items()}):
            assert not torch.allclose(spread(model, batch), expected, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "implementation"), IMPLEMENTATIONS)
def test_gate_gradients_of_experts_are_finite_differences_of_their_weight_columns(model_type, implementation):
    batch, sites = prompts(), expert_sites(moe_model(model_type))
    found = gate_gradients(moe_model(model_type, implementation=implementation), batch, sites, spread)
    model = moe_model(model_type).double()
    for name, site in sites.items():
        down, step = model.get_submodule(name).down_proj.data, 2e-2  # norms and softmax compute in float32
        transposed = model_type in ("gpt_oss", "aria_text", "llama4_text")
        tried = found[name].abs().sum(dim=0).argsort(descending=True)[[0, 1, 5, -1]].tolist()
        for index in tried:
            expert, neuron = divmod(index, site.width // down.shape[0])
            column = down[expert, neuron] if transposed else down[expert, :, neuron]
            before, change = column.clone(), torch.zeros(3, dtype=torch.double)
            for sign in (1, -1):
                column.copy_(before * (1 + sign * step))
                with torch.no_grad():
                    change += sign * spread(model, batch) / (2 * step)
            column.copy_(before)
            torch.testing.assert_close(found[name][:, index].double(), change, rtol=2e-3, atol=1e-6)
        assert found[name].shape == (3, site.width)
        assert found[name].any()


@pytest.mark.parametrize("model_type", TYPES)
def test_gates_of_adapted_experts_are_those_of_scaled_weights(model_type):
    adapted = tuned(moe_model(model_type))
    scaled = scale_columns(moe_model(model_type), adapted)
    batch, sites = paired(), find_sites(scaled)
    assert list(find_sites(adapted)) == list(sites)
    for method in ("gradient", "gate_path", "activation_path", "snip", "wanda"):
        found, expected = (METHODS[method](model, batch, sites) for model in (adapted, scaled))
        for name, part in expected.items():
            close(found[name], part, 2e-5)
    with torch.no_grad(), adapted.disable_adapter():
        without = gradient(adapted, batch, sites, target_log_prob)
    for name, part in gradient(moe_model(model_type), batch, sites, target_log_prob).items():
        close(without[name], part)


METHODS = {
    "gradient": lambda model, batch, sites: gradient(model, batch, sites, target_log_prob),
    "gate_path": lambda model, batch, sites: gate_path(model, batch, sites, target_log_prob, steps=2),
    "activation_path": lambda model, batch, sites: activation_path(model, batch, sites, target_log_prob, steps=2),
    "snip": lambda model, batch, sites: snip(model, batch, sites, target_log_prob),
    "wanda": lambda model, batch, sites: wanda(model, batch, sites),
    "activation_contrast": lambda model, batch, sites: activation_contrast(model, batch, sites),
    "pooled": lambda model, batch, sites: pooled(model, batch, sites),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", SHORT)
def test_scores_of_experts_do_not_depend_on_padding_side_or_batch_size(model_type, method):
    model = moe_model(model_type)
    sites = find_sites(model)
    together = METHODS[method](model, paired(), sites)
    left = METHODS[method](model, paired(padding_side="left"), sites)
    alone = [METHODS[method](model, paired(slice(i, i + 1)), sites) for i in range(3)]
    for name, part in together.items():
        assert part.any()
        close(left[name], part)
        close(torch.cat([one[name] for one in alone]), part)


@pytest.mark.parametrize("model_type", SHORT)
def test_rows_that_an_objective_adds_belong_to_their_example(model_type):
    model, margin = moe_model(model_type), RefusalMargin(((5, 6), (7,)), ((8,), (9, 10, 11)))
    sites, prompts_only = expert_sites(model), paired()
    attacked, plain = (
        replace(b, attention_mask=b.attention_mask * ~b.response_mask, response_mask=b.response_mask & False)
        for b in (cut(prompts_only, slice(None)), prompts_only.plain)
    )
    for method in (gradient, activation_path, snip):
        together = method(model, pair(attacked, plain), sites, margin)
        for row in range(3):
            one = slice(row, row + 1)
            alone = method(model, pair(cut(attacked, one), cut(plain, one)), sites, margin)
            for name, part in together.items():
                close(part[one], alone[name])


@pytest.mark.parametrize("model_type", SHORT)
def test_activation_path_of_experts_adds_up_on_its_path(model_type):
    model = moe_model(model_type)
    sites, batch = find_sites(model), paired()
    found = activation_path(model, batch, sites, target_log_prob, steps=64)
    start, end = (objective_on_path(model, batch, sites, target_log_prob, position=p) for p in (0.0, 1.0))
    with torch.no_grad():
        torch.testing.assert_close(end, target_log_prob(model, batch), rtol=0, atol=1e-5)
    total = sum(part.sum(dim=1) for part in found.values())
    torch.testing.assert_close(total, end - start, rtol=0.01, atol=2e-4)
    assert (end - start).abs().min() > 5e-3


@pytest.mark.parametrize("model_type", SHORT)
def test_readings_of_experts_write_what_the_module_returns(model_type):
    model, batch, parts = moe_model(model_type), prompts(), []
    sites = expert_sites(model)
    name = next(iter(sites))
    module, outputs = model.get_submodule(name), []
    module.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with read_neurons(model, {name: sites[name]}, parts.append), torch.no_grad():
        spread(model, batch)
    experts = module.down_proj.shape[0]
    size = sites[name].width // experts
    total = torch.zeros(batch.input_ids.numel(), 32)
    for part in parts:
        down = module.down_proj[part.start // size]
        total.index_add_(0, part.tokens, part.values @ (down if down.shape[0] == size else down.T))
        if model_type == "gpt_oss":  # answers hold the bias, activations do not
            total.index_add_(0, part.tokens, part.output - part.values @ down)
    found = outputs[0].view(experts, -1, 32).sum(dim=0) if model_type == "llama4_text" else outputs[0]
    close(total, found.detach())


@pytest.mark.parametrize("model_type", SHORT)
def test_routing_counts_are_tokens_times_experts_per_token(model_type):
    model, batch = moe_model(model_type), prompts(padding_side="left")
    counts = routing_counts(model, batch, find_sites(model))
    assert list(counts) == list(expert_sites(model))
    per_token = TYPES[model_type].get("num_experts_per_tok", 2)
    for count in counts.values():
        assert count.shape == (3, 4)
        assert count.sum(dim=1).tolist() == (per_token * batch.attention_mask.sum(dim=1)).tolist()


def dense(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Activations of all neurons at all tokens, `(B, T, F)`, 0 where a token is not routed to an expert."""
    sites, rows = expert_sites(model), batch.input_ids.shape
    found = {name: torch.zeros(rows.numel(), site.width) for name, site in sites.items()}

    def take(part):
        found[part.site][part.tokens, part.columns] = part.values

    with torch.no_grad(), read_neurons(model, sites, take):
        spread(model, batch)
    return {name: part.view(*rows, -1) for name, part in found.items()}


@pytest.mark.parametrize("model_type", SHORT)
def test_reductions_over_tokens_count_unrouted_ones_as_zero(model_type):
    model, other, batch = moe_model(model_type), moe_model(model_type, seed=1), prompts()
    sites, real = expert_sites(model), batch.attention_mask.bool().unsqueeze(-1)
    prompt = real & ~batch.response_mask.unsqueeze(-1)
    change = rms_change(model, batch, sites, other=other)
    largest, last = pooled(model, batch, sites), activation_contrast(model, batch, sites)
    others = dense(other, batch)
    for name, part in dense(model, batch).items():
        close(largest[name], part.masked_fill(~prompt, float("-inf")).amax(dim=1))
        close(last[name], part[torch.arange(3), batch.last_prompt])
        squares = ((part - others[name]).square() * real).sum(dim=1) / real.sum(dim=1)
        close(change[name], squares.sqrt())
        assert (largest[name] == 0).any()  # some expert's neuron is never active


def test_rms_change_and_causal_effects_reach_experts():
    model, other = moe_model("mixtral"), moe_model("mixtral")
    batch, sites = prompts(), expert_sites(model)
    name = list(sites)[-1]
    counts = routing_counts(model, batch, sites)[name]  # (B, E)
    other.get_submodule(name).gate_up_proj.data[1, 24 + 5] *= 2  # the up projection of neuron 5 of expert 1
    found = rms_change(model, batch, sites, other=other)
    assert {site: part.any(dim=0).nonzero().flatten().tolist() for site, part in found.items() if part.any()} == {
        name: [24 + 5]
    }
    assert torch.equal(found[name][:, 24 + 5] > 0, counts[:, 1] > 0)
    effects = causal(model, batch, sites, target_log_prob, shortlist={name: torch.tensor([24 + 5])})[name]
    with torch.no_grad():
        before = target_log_prob(model, batch)
        model.get_submodule(name).down_proj.data[1, :, 5] = 0
        torch.testing.assert_close(effects[:, 24 + 5], before - target_log_prob(model, batch), rtol=0, atol=1e-5)
