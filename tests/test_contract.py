"""What users of PEFT expect of a method: combining adapters, choosing layers, status, conversion, clear refusals."""

import json
import warnings

import pytest
import torch
from adapters import randomize, some_neurons, tuned_model
from architectures import tiny_model, tokens
from peft import (
    IA3Config,
    LoraConfig,
    NoMatchingPeftModuleError,
    PeftMixedModel,
    PeftModel,
    XLoraConfig,
    convert_to_lora,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from torch import nn

from neurontune_peft import Neurons, NeuronTuneConfig
from neurontune_peft.tuner import NeuronTuneLayer

SITES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
WIDTHS = dict.fromkeys(SITES, 48)


def logits(model: nn.Module, **inputs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(), **inputs).logits


def add(model: PeftModel, name: str, ranked: dict, **options: object) -> None:
    """Attach one more adapter with random deltas."""
    neurons = Neurons.from_ranked(ranked, widths=WIDTHS)
    model.add_adapter(name, NeuronTuneConfig(neurons=neurons, init_weights=False, **options))


def wrapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NeuronTuneLayer)]


def deltas(model: PeftModel, name: str) -> dict[tuple[str, int], float]:
    """Site and index to delta."""
    return {
        (site, int(index)): float(delta.detach())
        for site, layer in model.base_model.neuron_layers(name).items()
        for index, delta in zip(layer.neurontune_index[name], layer.neurontune_delta[name], strict=True)
    }


# Weighted sums of adapters


def test_a_weighted_adapter_holds_the_weighted_sum_over_the_union_of_neurons():
    model = tuned_model()
    add(model, "other", {"safety": [(SITES[1], 9), (SITES[0], 5)], "utility": [(SITES[0], 30)]})
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    first, second, found = (deltas(model, name) for name in ("default", "other", "sum"))
    assert found.keys() == first.keys() | second.keys()
    for neuron, delta in found.items():
        expected = 0.5 * first.get(neuron, 0.0) - 2.0 * second.get(neuron, 0.0)
        assert delta == pytest.approx(expected, abs=1e-6)


def test_a_weighted_adapter_acts_like_its_parts_at_these_strengths():
    model = tuned_model()
    add(model, "other", {"safety": [(SITES[1], 9), (SITES[0], 5)]})
    model.add_weighted_adapter(["default", "other"], [0.5, 2.0], "sum")
    model.set_strength(0.5, adapter_name="default")
    model.set_strength(2.0, adapter_name="other")
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model)
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)


def test_the_first_adapter_decides_a_role_and_the_best_rank_decides_the_place():
    model = tuned_model()
    add(model, "a", {"safety": [(SITES[0], 1), (SITES[0], 2), (SITES[0], 3)]})
    add(model, "b", {"utility": [(SITES[0], 3), (SITES[1], 4)], "safety": [(SITES[1], 8)]})
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    found = model.get_neurons("sum")
    assert found.ranked("safety") == [(SITES[0], 1), (SITES[0], 3), (SITES[1], 8), (SITES[0], 2)]
    assert found.ranked("utility") == [(SITES[1], 4)]


def test_a_weighted_adapter_is_inactive_frozen_and_survives_saving(tmp_path):
    model = tuned_model()
    add(model, "other", {"safety": [(SITES[1], 9)]})
    before = logits(model)
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    assert torch.equal(logits(model), before)
    assert model.active_adapters == ["default"]
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.endswith(".sum"))
    model.set_adapter("sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "sum")), logits(model))
    assert json.loads((tmp_path / "sum" / "adapter_config.json").read_text())["provenance"] == {
        "adapters": ["default", "other"],
        "weights": [1.0, 1.0],
    }


def test_a_whole_module_of_one_adapter_is_taken_over():
    model = get_peft_model(
        tiny_model(), NeuronTuneConfig(modules_to_save=["lm_head"], neurons=some_neurons(tiny_model()))
    )
    randomize(model)
    head = model.base_model.model.lm_head
    head.modules_to_save["default"].weight.data.normal_()
    add(model, "other", {"safety": [(SITES[1], 9)]})
    model.add_weighted_adapter(["other", "default"], [0.0, 1.0], "sum")
    model.eval()
    expected = logits(model)
    model.set_adapter("sum")
    assert torch.equal(head.modules_to_save["sum"].weight, head.modules_to_save["default"].weight)
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "message"),
    [
        (
            ["default"],
            [1.0, 2.0],
            "sum",
            "got adapters=.'default'. with weights=.1.0, 2.0.; expected one finite weight",
        ),
        ([], [], "sum", "expected one finite weight per adapter"),
        (["default"], [float("nan")], "sum", "expected one finite weight per adapter"),
        (["default", "x"], [1.0, 1.0], "sum", "got adapter_name='x'; expected one of"),
        (["default"], [1.0], "default", "got adapter_name='default', which is attached; expected a new name"),
        (["default", "outputs"], [1.0, 1.0], "sum", r"got adapters with neuron_side \['input', 'output'\]"),
        (["head", "head2"], [1.0, 1.0], "sum", "got 1 modules that several of"),
    ],
)
def test_an_impossible_sum_is_refused_and_nothing_is_added(adapters, weights, name, message):
    model = tuned_model()
    add(model, "head", {"safety": [(SITES[0], 1)]}, modules_to_save=["lm_head"])
    add(model, "head2", {"safety": [(SITES[0], 1)]}, modules_to_save=["lm_head"])
    model.add_adapter("outputs", NeuronTuneConfig(target_modules=["q_proj"], neuron_side="output"))
    before = list(model.peft_config)
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(adapters, weights, name)
    assert list(model.peft_config) == before


def test_a_merged_model_is_not_combined():
    model = tuned_model()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"call unmerge_adapter\(\) first"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


# Which modules


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [*SITES]),
        ({"target_modules": ["down_proj"], "layers_to_transform": [1]}, [SITES[1]]),
        ({"target_modules": ["down_proj"], "layers_to_transform": 0}, [SITES[0]]),
        ({"target_modules": ["down_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}, [SITES[0]]),
        ({"layers_to_transform": [1]}, [SITES[1]]),
        ({"exclude_modules": ["layers.0.mlp.down_proj"]}, [SITES[1]]),
        ({"exclude_modules": r".*layers\.1\..*"}, [SITES[0]]),
        ({"target_modules": r".*\.1\.mlp\.down_proj"}, [SITES[1]]),
        ({"target_modules": ("down_proj",)}, [*SITES]),
    ],
)
def test_layers_and_modules_can_be_chosen_and_excluded(options, expected):
    model = get_peft_model(tiny_model(), NeuronTuneConfig(task_type="CAUSAL_LM", **options))
    assert list(model.base_model.neuron_layers("default")) == expected


def test_all_linear_means_every_linear_module_but_the_head():
    model = get_peft_model(tiny_model(), NeuronTuneConfig(target_modules="all-linear"))
    linear = [name for name, module in tiny_model().named_modules() if isinstance(module, nn.Linear)]
    assert list(model.base_model.neuron_layers("default")) == [name for name in linear if name != "lm_head"]


def test_layers_cannot_be_chosen_beside_an_expression():
    with pytest.raises(ValueError, match=r"got layers_to_transform=\[0\] with the expression target_modules='.*down'"):
        NeuronTuneConfig(target_modules=".*down", layers_to_transform=[0])


def test_names_of_modules_become_a_set_and_are_saved_in_order(tmp_path):
    config = NeuronTuneConfig(target_modules=["b", "a"], exclude_modules=["d", "c"])
    config.save_pretrained(tmp_path)
    loaded = NeuronTuneConfig.from_pretrained(tmp_path)
    assert loaded.target_modules == {"a", "b"}
    assert loaded.exclude_modules == {"c", "d"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        ({"target_modules": ["nothing"]}, "Target modules of the adapter not found in the base model: got"),
        ({"target_modules": ["down_proj"], "exclude_modules": ["down_proj"]}, "All modules were excluded: got"),
        (
            {"target_modules": ["nothing"], "modules_to_save": ["lm_head"]},
            "No modules were targeted for adaptation: got",
        ),
    ],
)
def test_targets_that_match_nothing_raise_pefts_own_kind_of_error(options, beginning):
    with pytest.raises(NoMatchingPeftModuleError, match=beginning):
        get_peft_model(tiny_model(), NeuronTuneConfig(**options))


# Mixed batches


def test_a_model_with_inputs_of_its_own_names_refuses_another_number_of_adapter_names():
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.linear(values)

    model = get_peft_model(Custom(), NeuronTuneConfig(target_modules=["linear"], init_weights=False)).eval()
    model(values=torch.randn(6, 4), adapter_names=["default", "__base__"] * 3)
    with pytest.raises(ValueError, match="for 2 requests and a batch of 6"):
        model(values=torch.randn(6, 4), adapter_names=["default", "__base__"])


# Precision, places and names


@pytest.mark.parametrize("autocast", [True, False])
def test_deltas_are_float32_unless_pefts_autocast_is_turned_off(tmp_path, autocast):
    base = tiny_model(dtype=torch.bfloat16)
    model = get_peft_model(base, NeuronTuneConfig(init_weights=False), autocast_adapter_dtype=autocast)
    expected = torch.float32 if autocast else torch.bfloat16
    assert {p.dtype for n, p in model.named_parameters() if "delta" in n} == {expected}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(dtype=torch.bfloat16), tmp_path, autocast_adapter_dtype=autocast)
    assert {p.dtype for n, p in again.named_parameters() if "delta" in n} == {expected}
    add(again, "other", {"safety": [(SITES[0], 1)]})
    assert torch.equal(logits(again.eval()), logits(model.eval()))
    again.base_model.set_adapter(["default", "other"])
    assert torch.isfinite(logits(again)).all()


def test_low_cpu_mem_usage_leaves_every_saved_tensor_to_the_loader():
    model = inject_adapter_in_model(NeuronTuneConfig(), tiny_model(), low_cpu_mem_usage=True)
    assert {tensor.device.type for tensor in get_peft_model_state_dict(model).values()} == {"meta"}
    loaded = tuned_model(sparse=False)
    set_peft_model_state_dict(model, get_peft_model_state_dict(loaded.base_model.model), low_cpu_mem_usage=True)
    assert torch.equal(logits(model), logits(loaded))


def test_an_adapter_that_peft_saved_without_safetensors_loads(tmp_path):
    model = tuned_model()
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits(model))


def test_an_adapter_follows_modules_that_transformers_has_renamed(tmp_path):
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return next(iter(self.children()))[0](x)

    class New(Old):
        _checkpoint_conversion_mapping = {r"^body\.": "trunk."}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.trunk = self.body
            del self.body

    torch.manual_seed(0)
    old, x = Old(), torch.randn(2, 4)
    new = New()
    new.trunk[0].load_state_dict(old.body[0].state_dict())
    model = get_peft_model(old, NeuronTuneConfig(target_modules=["body.0"], init_weights=False))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is the same model under other names
        loaded = PeftModel.from_pretrained(new, tmp_path)
    assert torch.equal(loaded(x), model(x))


def test_a_compiled_model_has_the_same_sites():
    model = inject_adapter_in_model(NeuronTuneConfig(neurons=some_neurons(tiny_model())), torch.compile(tiny_model()))
    assert [name.removeprefix("_orig_mod.") for name in wrapped(model)] == [*SITES]


@pytest.mark.parametrize(("scaled", "part"), [("weight", "weights"), ("bias", "bias")])
def test_safe_merge_says_whether_weights_or_bias_would_break(scaled, part):
    model = get_peft_model(tiny_model("phi"), NeuronTuneConfig(neuron_side="output", init_weights=False))
    layer = next(module for module in model.modules() if isinstance(module, NeuronTuneLayer))
    getattr(layer.get_base_layer(), scaled).data[0] = float("inf")
    with pytest.raises(ValueError, match=f"NaNs detected in the merged {part}"):
        model.merge_adapter(safe_merge=True)


# Status


def test_an_adapter_made_for_inference_has_nothing_to_train():
    model = get_peft_model(tiny_model(), NeuronTuneConfig(inference_mode=True))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert get_model_status(model).requires_grad == {"default": False}


def test_the_status_of_model_and_layers_is_what_pefts_users_know():
    model = tuned_model()
    add(model, "other", {"safety": [(SITES[1], 9)]})
    layers = get_layer_status(model)
    assert [layer.name for layer in layers] == [f"model.{site}" for site in SITES]
    assert [layer.available_adapters for layer in layers] == [["default"], ["default", "other"]]
    assert {layer.module_type for layer in layers} == {"Linear"}
    assert layers[1].requires_grad == {"default": True, "other": False}
    status = get_model_status(model)
    assert status.peft_types == {"default": "NEURONTUNE", "other": "NEURONTUNE"}
    assert status.adapter_model_type == "NeuronTuneModel"
    assert (status.num_adapter_layers, status.trainable_params) == (2, 10)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    model.merge_adapter()
    assert get_model_status(model).merged_adapters == ["default"]
    with model.disable_adapter():
        assert not get_model_status(model).enabled


# Conversion to LoRA


# PEFT sets `fan_in_fan_out` for GPT-2's Conv1D by itself, and says so.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_pefts_own_conversion_gives_an_equal_lora_at_the_rank_of_the_neurons(model_type):
    model = tuned_model(tiny_model(model_type))
    assert model.supports_lora_conversion()
    config, tensors = convert_to_lora(model, rank=5)
    lora = get_peft_model(tiny_model(model_type), config).eval()
    set_peft_model_state_dict(lora, tensors)
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-4, atol=1e-4)


def test_an_adapter_without_neurons_at_a_site_converts_to_no_change_there():
    model = tuned_model()
    add(model, "other", {"safety": [(SITES[1], 9)]})
    config, tensors = convert_to_lora(model, rank=1, adapter_name="other")
    lora = get_peft_model(tiny_model(), config).eval()
    set_peft_model_state_dict(lora, tensors)
    model.set_adapter("other")
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-4, atol=1e-4)


def test_scales_of_a_bias_are_not_converted():
    model = get_peft_model(tiny_model("phi"), NeuronTuneConfig(neuron_side="output"))
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=4)


# What stays impossible for a method outside of PEFT


def test_a_mixed_model_is_refused_and_the_model_stays_plain():
    model = tiny_model()
    with pytest.raises(ValueError, match="'NEURONTUNE' is not compatible with the `PeftMixedModel`"):
        get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM"), mixed=True)
    assert not wrapped(model)
    mixed = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]), mixed=True)
    with pytest.raises(ValueError, match="'NEURONTUNE' is not compatible"):
        mixed.add_adapter("other", NeuronTuneConfig())
    assert isinstance(mixed, PeftMixedModel)


def test_another_method_is_not_added_beside_ours():
    with pytest.raises(ValueError, match="IA3"):
        tuned_model().add_adapter("other", IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]))


def test_pefts_hotswap_is_refused_and_the_numbers_stay(tmp_path):
    model = tuned_model()
    model.save_pretrained(tmp_path)
    before = logits(model)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but NEURONTUNE was passed"):
        hotswap_adapter(model, tmp_path, adapter_name="default")
    assert torch.equal(logits(model), before)


def test_x_lora_takes_no_adapter_of_ours(tmp_path):
    tuned_model().save_pretrained(tmp_path)
    base = tiny_model()
    base.config.use_cache = False
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={"0": str(tmp_path)})
    with pytest.raises(AttributeError, match=r"got a NEURONTUNE adapter.*convert it with peft.convert_to_lora"):
        get_peft_model(base, config)


def test_modules_that_hold_no_neurons_are_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    with pytest.raises(TypeError, match=r"got '0' of type Conv2d; expected nn\.Linear, Conv1D or fused experts"):
        inject_adapter_in_model(NeuronTuneConfig(target_modules=["0"]), model)
    assert not wrapped(model)
