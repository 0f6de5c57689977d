"""Neurons inside fused experts: scaling one is scaling its column of the expert's down projection."""

import pytest
import torch
from adapters import randomize
from architectures import VOCABULARY, tokens
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites
from neurontune_peft.tuner.experts import Experts

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "qwen3_moe": {"num_experts": 4, "decoder_sparse_step": 1},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "layer_types": ["full_attention"] * 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "llama4_text": {
        "num_local_experts": 4,
        "interleave_moe_layer_step": 1,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 24,
        "attention_chunk_size": 32,
    },
    "granitemoe": {"num_local_experts": 4},
    "nemotron_h": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "layers_block_type": ["attention", "moe"],
    },
}


def moe_model(model_type: str, *, implementation: str = "eager", seed: int = 0) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **(COMMON | TYPES[model_type]))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, experts_implementation=implementation).eval()
    for parameter in model.parameters():  # some classes leave experts at zero
        if parameter.ndim == 3 or not parameter.any():
            parameter.data.normal_(std=0.3)
    return model


def expert_sites(model: PreTrainedModel) -> dict[str, int]:
    return {site.name: site.width for site in find_sites(model).values() if site.kind == "experts"}


def tuned(model: PreTrainedModel, *, seed: int = 0) -> PeftModel:
    """An adapter over six neurons of each experts module, of different experts."""
    sites = expert_sites(model)
    chosen = [(site, index) for site, width in sites.items() for index in range(1, width, width // 6)]
    config = NeuronTuneConfig(task_type="CAUSAL_LM", neurons=Neurons.from_ranked({"safety": chosen}, widths=sites))
    adapted = get_peft_model(model, config)
    randomize(adapted, seed=seed, std=1.0)
    return adapted.eval()


def logits(model: nn.Module, **inputs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(batch=3), **inputs).logits


def scale_columns(model: PreTrainedModel, adapted: PeftModel) -> PreTrainedModel:
    """The reference: the same neurons scaled in the weights of another copy of the model."""
    for site, layer in adapted.base_model.neuron_layers("default").items():
        down = model.get_submodule(site).down_proj.data
        scales = layer.scale("default").detach()
        for index, scale in zip(layer.neurontune_index["default"].tolist(), scales, strict=True):
            expert, neuron = divmod(index, layer.expert_size)
            column = down[expert, neuron] if layer.layout.transposed else down[expert, :, neuron]
            column.mul_(scale)
    return model


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("model_type", TYPES)
def test_scaling_an_expert_neuron_is_scaling_its_weight_column(model_type, implementation):
    if model_type == "llama4_text":
        implementation = "eager"  # the only one that this class has
    adapted = tuned(moe_model(model_type, implementation=implementation))
    reference = scale_columns(moe_model(model_type, implementation=implementation), adapted)
    expected = logits(reference)
    assert relative_error(logits(adapted), expected) < 1e-5
    assert relative_error(logits(moe_model(model_type, implementation=implementation)), expected) > 1e-4


@pytest.mark.parametrize("model_type", TYPES)
def test_a_single_token_is_scaled_as_in_a_long_prompt(model_type):
    adapted = tuned(moe_model(model_type))
    reference = scale_columns(moe_model(model_type), adapted)
    for token in range(3, 11):  # each is routed to experts of its own
        ids = torch.tensor([[token]])
        with torch.no_grad():
            found, expected = adapted(input_ids=ids).logits, reference(input_ids=ids).logits
            rows = adapted(input_ids=ids, neurontune_strength=[1.0]).logits
        assert relative_error(found, expected) < 1e-5
        assert relative_error(rows, expected) < 1e-5


@pytest.mark.parametrize("model_type", TYPES)
def test_a_new_adapter_on_experts_is_the_identity_and_routers_are_untouched(model_type):
    base = moe_model(model_type)
    before, weights = logits(base), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = get_peft_model(base, NeuronTuneConfig())
    assert any(isinstance(module, Experts) for module in model.modules())
    assert torch.equal(logits(model), before)
    for name, tensor in model.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        assert "neurontune" in name or torch.equal(tensor, weights[plain]), name


@pytest.mark.parametrize("model_type", TYPES)
def test_merging_experts_is_exact_and_unmerging_bit_exact(model_type):
    adapted = tuned(moe_model(model_type))
    weights = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    expected = logits(adapted)
    adapted.merge_adapter(safe_merge=True)
    assert relative_error(logits(adapted), expected) < 1e-5
    adapted.unmerge_adapter()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in adapted.state_dict().items())
    merged = adapted.merge_and_unload()
    assert relative_error(logits(merged), expected) < 1e-5
    assert [type(m) for m in merged.modules()] == [type(m) for m in moe_model(model_type).modules()]


@pytest.mark.parametrize("model_type", TYPES)
def test_gradients_of_expert_scales_match_finite_differences(model_type):
    adapted = tuned(moe_model(model_type)).double()
    layer = next(module for module in adapted.modules() if isinstance(module, Experts))
    delta = layer.neurontune_delta["default"]

    def loss() -> torch.Tensor:
        return adapted(input_ids=tokens(batch=3)).logits.square().mean()

    loss().backward()
    for position in range(delta.numel()):
        difference = 0.0
        for sign in (1, -1):
            delta.data[position] += sign * 1e-3
            difference += sign * loss().item() / 2e-3
            delta.data[position] -= sign * 1e-3
        torch.testing.assert_close(delta.grad[position].item(), difference, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", TYPES)
def test_rows_of_a_mixed_batch_have_their_own_expert_scales(model_type):
    adapted = tuned(moe_model(model_type))
    neurons = adapted.get_neurons()
    adapted.add_adapter("other", NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons.head(safety=3)))
    randomize(adapted, seed=4, std=1.0)
    adapted.eval()
    ids, names = tokens(batch=3), ["other", "__base__", "default"]
    mixed = logits(adapted, adapter_names=names, neurontune_strength=[1.0, 1.0, 0.5])
    for row, (name, strength) in enumerate(zip(names, [1.0, 1.0, 0.5], strict=True)):
        adapted.set_adapter("default" if name == "__base__" else name)
        with torch.no_grad(), adapted.strength(0.0 if name == "__base__" else strength):
            alone = adapted(input_ids=ids[row : row + 1]).logits
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_an_adapter_on_experts_loads_again(tmp_path):
    adapted = tuned(moe_model("mixtral"))
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(moe_model("mixtral"), tmp_path)), logits(adapted))


def test_experts_of_an_unknown_layout_are_refused_by_name_before_anything_is_wrapped():
    model = moe_model("mixtral")
    for layer in model.model.layers:
        del layer.mlp.experts.has_gate
    modules = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"got fused experts of class MixtralExperts at 'model.layers.0.mlp.experts'"):
        get_peft_model(model, NeuronTuneConfig(target_modules=["experts"]))
    assert [type(module) for module in model.modules()] == modules


def test_the_output_side_of_experts_is_refused():
    with pytest.raises(ValueError, match="for the fused experts"):
        get_peft_model(moe_model("mixtral"), NeuronTuneConfig(neuron_side="output"))
