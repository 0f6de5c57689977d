"""Scores on every kind of model: architectures, adapters, quantised and offloaded weights."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from architectures import ARCHITECTURES, tiny_model
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from test_attribution_experts import METHODS, close, cut, paired, prompts, spread
from test_experts import TYPES, moe_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites
from neurontune_peft.attribution import causal, gate_gradients, rms_change, snip
from neurontune_peft.attribution.engine import gated, held_still, site_modules
from neurontune_peft.objectives import target_log_prob
from neurontune_peft.tuner.quantized import QuantizedLinear, quantization_backend

LAST = "model.layers.1.mlp.down_proj"
SOME = Neurons.from_ranked({"safety": [(LAST, 3), (LAST, 8)]}, widths={LAST: 48})


def make(kind: str) -> nn.Module:
    return moe_model(kind) if kind in TYPES else tiny_model(kind, initializer_range=0.2)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *TYPES])
def test_snip_is_the_weights_times_their_own_gradient(kind):
    model, batch = make(kind), cut(prompts(), slice(1))
    sites = find_sites(model)
    found = snip(model, batch, sites, target_log_prob)
    target_log_prob(model, batch).sum().backward()
    for name, site in sites.items():
        module = model.get_submodule(name)
        weight = module.weight if site.kind == "linear" else module.down_proj
        product = (weight * weight.grad).detach().abs()
        if site.kind == "linear":
            expected = product.sum(dim=int(isinstance(module, Conv1D)))
        else:
            transposed = kind in ("gpt_oss", "aria_text", "llama4_text")
            expected = product.sum(dim=2 if transposed else 1).flatten()
        close(found[name][0], expected)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_method_scores_every_architecture_alike_alone_and_in_a_batch(kind):
    model = make(kind).requires_grad_(False)
    sites = find_sites(model)
    for method in METHODS.values():
        together = method(model, paired(), sites)
        alone = [method(model, paired(slice(i, i + 1)), sites) for i in range(3)]
        for name, part in together.items():
            assert part.any()
            close(torch.cat([one[name] for one in alone]), part)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "config", [NeuronTuneConfig(task_type="CAUSAL_LM", neurons=SOME), LoraConfig(target_modules=["down_proj"])]
)
def test_an_adapter_that_does_nothing_changes_no_score_and_site_names_stay(config, method):
    batch = paired(slice(2))
    expected = METHODS[method](make("llama"), batch, find_sites(make("llama")))
    model = get_peft_model(make("llama"), copy.deepcopy(config)).eval()
    found = METHODS[method](model, batch, find_sites(model))
    assert list(found) == list(expected)
    for name, part in expected.items():
        close(found[name], part, 1e-6)


def scaling_model() -> nn.Module:
    model = get_peft_model(make("llama"), NeuronTuneConfig(task_type="CAUSAL_LM", neurons=SOME)).eval()
    model.get_base_model().get_submodule(LAST).neurontune_delta["default"].data.fill_(0.7)
    return model


def test_scores_of_scaled_neurons_are_those_of_scaled_weights():
    model, scaled, batch = scaling_model(), make("llama"), paired(slice(2))
    scaled.get_submodule(LAST).weight.data[:, [3, 8]] *= 1.7
    for method in ("gradient", "gate_path", "activation_path", "snip", "wanda"):
        close(*(METHODS[method](m, batch, find_sites(m))[LAST] for m in (model, scaled)))
    effects = [
        causal(m, batch, find_sites(m), target_log_prob, shortlist={LAST: torch.tensor([3, 4])})[LAST]
        for m in (model, scaled)
    ]
    close(*effects)
    assert effects[0][:, [3, 4]].all()


def test_rms_change_without_another_model_is_what_the_adapter_does():
    model = scaling_model()
    found = rms_change(model, prompts(), find_sites(model))
    assert found[LAST].any(dim=0).nonzero().flatten().tolist() == [3, 8]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt_oss", "nemotron_h"])
def test_offloaded_weights_give_the_same_scores(kind, method):
    batch, model, offloaded = paired(), make(kind), make(kind)
    expected = METHODS[method](model, batch, find_sites(model))
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in offloaded.parameters())
    with held_still(offloaded):
        found = METHODS[method](offloaded, batch, find_sites(offloaded))
    assert all(parameter.requires_grad for parameter in offloaded.parameters())
    assert all(parameter.device.type == "meta" for parameter in offloaded.parameters())
    for name, part in expected.items():
        close(found[name], part)


@pytest.fixture(scope="module")
def nf4_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    # bitsandbytes' 4-bit kernel refuses output sizes that are no multiple of 32 on CPUs with AVX512-BF16.
    tiny_model(hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.2).save_pretrained(path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, device_map="cpu", quantization_config=config
    )
    return model.eval()


def pack(model: nn.Module) -> list[Linear4bit]:
    """What a generation does: a forward pass without gradients packs weights where the CPU has a kernel for it."""
    with torch.no_grad():
        spread(model, prompts())
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def test_gates_pass_through_packed_nf4_weights_which_are_packed_again_afterwards(nf4_model):
    flags = [module.support_avx512bf16_for_cpu for module in pack(nf4_model)]
    batch, sites = prompts(), find_sites(nf4_model)
    found = gate_gradients(nf4_model, batch, sites, spread)
    assert [module.support_avx512bf16_for_cpu for module in pack(nf4_model)] == flags
    with held_still(nf4_model), torch.no_grad():
        for name, site in sites.items():
            for index in found[name].abs().sum(dim=0).argsort(descending=True)[:3].tolist():
                change, step = torch.zeros(3), 2e-2
                for sign in (1, -1):
                    gate = torch.ones(3, site.width)
                    gate[:, index] += sign * step
                    with gated(site_modules(nf4_model, {name: site}), {name: gate}):
                        change += sign * spread(nf4_model, batch) / (2 * step)
                torch.testing.assert_close(found[name][:, index], change, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_an_nf4_model_as_its_dequantised_copy(nf4_model, method):
    pack(nf4_model)
    with held_still(nf4_model):
        plain = copy.deepcopy(nf4_model)
        for name, module in nf4_model.named_modules():
            if (backend := quantization_backend(module)) is not None:
                wrapped = QuantizedLinear(module, backend=backend)
                wrapped.dequantize(torch.float32)
                plain.set_submodule(name, wrapped.base_layer)
        found = METHODS[method](nf4_model, paired(), find_sites(nf4_model))
    expected = METHODS[method](plain, paired(), find_sites(plain))
    for name, part in expected.items():
        assert part.any()
        close(found[name], part, 1e-4)
