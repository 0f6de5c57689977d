"""The PEFT method: identity at the start, exact arithmetic, exact unmerging, dials, and refusals before any change."""

import copy
import pickle

import pytest
import torch
from adapters import randomize, some_neurons, tuned_model
from architectures import ARCHITECTURES, tiny_model, tokens
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites
from neurontune_peft.tuner import NeuronTuneLayer

SITES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


def logits(model: nn.Module, **inputs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(), **inputs).logits


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def layers_of(model: nn.Module) -> list[NeuronTuneLayer]:
    return [module for module in model.modules() if isinstance(module, NeuronTuneLayer)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_new_adapter_without_target_modules_is_the_identity_bit_for_bit(model_type, dtype):
    base = tiny_model(model_type, dtype=dtype)
    before = logits(base)
    model = get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM"))
    assert len(layers_of(model)) == 2
    assert torch.equal(logits(model), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("neurontune_delta" in name for name in trainable)
    assert model.peft_config["default"].target_modules == list(model.base_model.neuron_layers("default"))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_merging_agrees_to_1e_5_and_unmerging_is_bit_exact(model_type):
    model = tuned_model(tiny_model(model_type))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    model.merge_adapter()
    assert relative_error(logits(model), expected) < 1e-5
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    model.unmerge_adapter()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), expected)
    merged = model.merge_and_unload()
    assert relative_error(logits(merged), expected) < 1e-5
    assert [type(m) for m in merged.modules()] == [type(m) for m in tiny_model(model_type).modules()]
    assert not merged._load_state_dict_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi"])
def test_unmerging_is_bit_exact_after_scales_of_0(model_type, side, dtype):
    model = get_peft_model(tiny_model(model_type, dtype=dtype), NeuronTuneConfig(neuron_side=side))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in layers_of(model):
        layer.neurontune_delta["default"].data.fill_(-1.0)
    before = {n: t.clone() for n, t in model.state_dict().items() if "delta" not in n}
    model.merge_adapter()
    scaled = layers_of(model)[0].get_base_layer()
    assert not scaled.weight.any()
    model.unmerge_adapter()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert weights.keys() == model.state_dict().keys()


def test_scaling_a_neuron_is_scaling_its_weight_column():
    model = tuned_model()
    layer = layers_of(model)[0]
    x = torch.randn(3, 5, layer.width)
    scale = torch.ones(layer.width)
    for index, delta in zip(layer.neurontune_index["default"], layer.neurontune_delta["default"], strict=True):
        scale[index] = 1 + delta.detach()
    expected = nn.functional.linear(x, layer.get_base_layer().weight * scale)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.get_delta_weight("default"), (layer.get_base_layer().weight * (scale - 1)).detach())


@pytest.mark.parametrize("model_type", ["phi", "gpt2"])
def test_output_side_scales_the_bias_too(model_type):
    model = get_peft_model(tiny_model(model_type), NeuronTuneConfig(neuron_side="output"))
    randomize(model)
    layer = layers_of(model)[0]
    layer.get_base_layer().bias.data.normal_()
    x = torch.randn(4, layer.in_features)
    scale = layer.combined_scale(["default"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) * scale)
    expected = logits(model)
    model.merge_adapter()
    assert relative_error(logits(model), expected) < 1e-5


def test_hooks_on_the_base_layer_still_run():
    model = tuned_model()
    seen = []
    layers_of(model)[0].get_base_layer().register_forward_hook(lambda *_: seen.append(1))
    logits(model)
    assert seen == [1]


def test_only_selected_neurons_are_trained_and_gradients_match_finite_differences():
    model = tuned_model().double()
    layer = layers_of(model)[0]

    def loss() -> torch.Tensor:
        return model(tokens()).logits.square().mean()

    loss().backward()
    delta = layer.neurontune_delta["default"]
    numerical = torch.zeros_like(delta)
    for position in range(delta.numel()):
        for sign in (1, -1):
            delta.data[position] += sign * 1e-3
            numerical[position] += sign * loss().detach() / 2e-3
            delta.data[position] -= sign * 1e-3
    torch.testing.assert_close(delta.grad, numerical, rtol=1e-3, atol=1e-6)
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.grad is not None} == {"neurontune_delta"}


def test_backward_keeps_only_the_selected_activations():
    base = tiny_model()
    model = get_peft_model(base, NeuronTuneConfig(neurons=some_neurons(base)))
    layer = layers_of(model)[0]
    hidden = torch.randn(2, 7, layer.width, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer.scale_neurons(hidden, ["default"])
    assert max(saved) < hidden.numel() / 2


# Several adapters and the dials


def test_active_adapters_combine_as_one_plus_the_sum_of_their_deltas():
    model = tuned_model()
    widths = dict.fromkeys(SITES, 48)
    model.add_adapter(
        "other", NeuronTuneConfig(neurons=Neurons.from_ranked({"safety": [(SITES[0], 5)]}, widths=widths))
    )
    model.base_model.set_adapter(["default", "other"])
    layer = layers_of(model)[0]
    layer.neurontune_delta["other"].data.fill_(0.25)
    first = layer.scale("default")[layer.neurontune_index["default"] == 5].item()
    torch.testing.assert_close(layer.combined_scale(["default", "other"])[5].item(), first + 0.25)
    expected = logits(model)
    model.merge_adapter()
    assert relative_error(logits(model), expected) < 1e-5
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)


def test_merging_one_adapter_after_another_is_merging_both():
    model = tuned_model()
    model.add_adapter("other", NeuronTuneConfig(neurons=some_neurons(tiny_model()), init_weights=False))
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model)
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(["other"])
    assert relative_error(logits(model), expected) < 1e-5
    model.unmerge_adapter()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_disabling_the_adapter_gives_the_base_model_and_comes_back():
    model, base = tuned_model(), logits(tiny_model())
    tuned = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), tuned)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


def test_deleting_an_adapter_removes_every_trace_of_it():
    model = tuned_model()
    model.add_adapter("other", NeuronTuneConfig(neurons=some_neurons(tiny_model())))
    model.delete_adapter("other")
    assert not [name for name in model.state_dict() if "other" in name]
    assert all("other" not in layer.dials and "other" not in layer.roles for layer in layers_of(model))


def test_strength_0_is_the_base_model_and_1_the_adapter_merged_or_not():
    model, base = tuned_model(), logits(tiny_model())
    tuned = logits(model)
    model.set_strength(0.0)
    assert torch.equal(logits(model), base)
    model.merge_adapter()
    assert torch.equal(logits(model), base)
    model.set_strength(1.0)
    assert relative_error(logits(model), tuned) < 1e-5
    model.unmerge_adapter()
    assert torch.equal(logits(model), tuned)


def test_strength_scales_the_deltas_of_the_named_role():
    model = tuned_model()
    layer = layers_of(model)[0]
    before = layer.scale("default").detach().clone()
    model.set_strength(0.5, role="safety")
    part = layer.roles["default"]["safety"]
    torch.testing.assert_close(layer.scale("default")[part], 1 + (before[part] - 1) / 2)
    rest = layer.roles["default"]["utility"]
    assert torch.equal(layer.scale("default")[rest], before[rest])


def measure_and_fail(model: nn.Module, base: torch.Tensor) -> None:
    with model.strength(0.0):
        assert torch.equal(logits(model), base)
        raise KeyError


def test_the_strength_of_a_with_block_ends_with_it_even_on_an_exception():
    model, base = tuned_model(), logits(tiny_model())
    tuned = logits(model)

    def interrupted() -> None:
        with model.strength(0.0):
            assert torch.equal(logits(model), base)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(logits(model), tuned)


def test_count_thresholds_keep_the_top_ranked_neurons_of_each_role():
    model = tuned_model()
    tuned = logits(model)
    model.set_neuron_counts(safety=1, utility=0)
    acting = {
        (site, int(layer.neurontune_index["default"][position]))
        for site, layer in model.base_model.neuron_layers("default").items()
        for position in layer.neurontune_strength["default"].nonzero().flatten()
    }
    assert acting == {(SITES[0], 5)}
    model.set_neuron_counts(safety=0)
    assert torch.equal(logits(model), logits(tiny_model()))
    model.set_neuron_counts(safety=None, utility=None)
    assert torch.equal(logits(model), tuned)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.set_strength(float("nan")), "got strength=nan; expected a finite number"),
        (
            lambda m: m.set_strength(1.0, role="other"),
            r"got role \['other'\]; expected one of \['safety', 'utility'\]",
        ),
        (lambda m: m.set_strength(1.0, adapter_name="x"), "got adapter_name='x'; expected one of"),
        (lambda m: m.set_neuron_counts(safety=7), "got safety=7; expected 0 to 6; lower the count"),
        (lambda m: m.set_neuron_counts(safety=-1), "got safety=-1; expected 0 to 6"),
        (lambda m: m.set_neuron_counts(safety=0, other=1), "got role"),
    ],
)
def test_an_impossible_dial_is_refused_and_nothing_changes(call, message):
    model = tuned_model()
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        call(model)
    assert torch.equal(logits(model), before)


def test_the_neurons_of_an_adapter_can_be_read_back():
    model = tuned_model()
    found, made = model.get_neurons(), some_neurons(tiny_model())
    assert {role: found.ranked(role) for role in found.roles} == {role: made.ranked(role) for role in made.roles}


# Copies and other ways of attaching


def test_a_deep_copy_and_a_pickled_copy_compute_the_same_merged_or_not():
    model = tuned_model()
    expected = logits(model)
    for merged in (False, True):
        if merged:
            model.merge_adapter()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert relative_error(logits(twin), expected) < 1e-5
            if merged:
                twin.unmerge_adapter()
            assert torch.equal(logits(twin), expected)


def test_inject_adapter_in_model_attaches_the_same_layers():
    base = tiny_model()
    before = logits(base)
    model = inject_adapter_in_model(NeuronTuneConfig(neurons=some_neurons(base)), base)
    assert model is base
    assert torch.equal(logits(model), before)
    assert len(layers_of(model)) == 2


def test_neurons_can_be_given_as_the_path_of_a_file(tmp_path):
    some_neurons(tiny_model()).save(tmp_path / "neurons.json")
    model = get_peft_model(tiny_model(), NeuronTuneConfig(neurons=str(tmp_path / "neurons.json")))
    assert model.get_neurons().counts == some_neurons(tiny_model()).counts


def test_safe_merge_refuses_a_broken_adapter_and_leaves_the_weights():
    model = tuned_model()
    weights = [layer.get_base_layer().weight.clone() for layer in layers_of(model)]
    layers_of(model)[0].neurontune_delta["default"].data[0] = float("inf")
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights. The adapter default seems to be broken"
    ):
        model.merge_adapter(safe_merge=True)
    assert all(
        torch.equal(layer.get_base_layer().weight, w) for layer, w in zip(layers_of(model), weights, strict=True)
    )


# Bad input, refused before the first module is wrapped


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"target_modules": ["nothing"]},
            ValueError,
            r"got target_modules=\['nothing'\], which match no module.*down_proj",
        ),
        ({"target_modules": ["down_proj", "typo_proj"]}, ValueError, r"got target_modules=\['typo_proj'\]"),
        ({"target_modules": ".*nothing"}, ValueError, "got target_modules='.*nothing'"),
        ({"target_modules": ["embed_tokens"]}, TypeError, "of type Embedding; expected nn.Linear, Conv1D"),
        ({"target_modules": ["down_proj"], "layers_to_transform": [7]}, ValueError, r"layers_to_transform=\[7\]"),
        ({"neurons": "nowhere.json"}, ValueError, "got 'nowhere.json'"),
        ({"neuron_side": "both"}, ValueError, "got neuron_side='both'; expected 'input' or 'output'"),
        ({"neuron_counts": {"safety": {SITES[0]: 0}}}, ValueError, "got neuron_counts="),
        ({"neuron_counts": {"safety": {"elsewhere": 2}}}, ValueError, r"got neurons at \['elsewhere'\]"),
        ({"layers_pattern": "layers"}, ValueError, "got layers_pattern='layers' without layers_to_transform"),
        ({"format_version": 99}, ValueError, "got format_version 99"),
    ],
)
def test_an_impossible_configuration_is_refused_and_the_model_stays_plain(options, error, message):
    model = tiny_model()
    modules = [type(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        get_peft_model(model, NeuronTuneConfig(**options))
    assert [type(module) for module in model.modules()] == modules


def test_neurons_of_a_wider_model_are_refused():
    neurons = Neurons.from_ranked({"safety": [(SITES[0], 3)]}, widths={SITES[0]: 64})
    with pytest.raises(ValueError, match="with width 64; expected 48, the width in this model; use the model"):
        get_peft_model(tiny_model(), NeuronTuneConfig(neurons=neurons))


def test_a_model_without_sites_is_refused():
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), NeuronTuneConfig())


@pytest.mark.parametrize(
    "other",
    [
        LoraConfig(target_modules=["down_proj"]),
        IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["lora", "ia3"],
)
def test_a_layer_of_another_method_is_not_wrapped(other):
    model = inject_adapter_in_model(other, tiny_model())
    del model.peft_config  # PEFT's own warning about a second configuration is not what is tested
    with pytest.raises(TypeError, match="already wrapped by"):
        inject_adapter_in_model(NeuronTuneConfig(target_modules=["down_proj"]), model, "second")


def test_a_module_can_be_trained_and_saved_beside_the_neurons(tmp_path):
    model = get_peft_model(tiny_model(), NeuronTuneConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]))
    randomize(model)
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits(model))


def test_attaching_to_a_model_on_the_meta_device_needs_no_values():
    with torch.device("meta"):
        model = tiny_model()
    adapted = get_peft_model(model, NeuronTuneConfig())
    assert adapted.peft_config["default"].base_model_fingerprint is None
    assert set(adapted.base_model.neuron_layers("default")) == set(find_sites(tiny_model()))
