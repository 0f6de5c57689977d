"""Dynamic adapters as files: five loading routes, format versions, bad input, prompt ends of common chat templates."""

import json

import pytest
import torch
from adapters import saved_adapter
from architectures import tiny_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_loading import DTYPES, ROUTES, load_base
from triggers import (
    SUFFIX,
    decisions,
    dynamic_config,
    dynamic_model,
    logits,
    requests,
    set_random_triggers,
    triggered,
)

from neurontune_peft import AdapterFile, NeuronTuneConfig

SITE = "base_model.model.model.layers.0.mlp.down_proj"


def saved(directory, **options):
    model = dynamic_model(**options)
    model.save_pretrained(directory)
    return directory, model


@pytest.mark.parametrize("low_cpu", [False, True], ids=["", "low_cpu_mem_usage"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_five_loading_routes_decide_alike(tmp_path, route, dtype, low_cpu):
    base = tmp_path / "base"
    tiny_model(dtype=dtype).save_pretrained(base)
    adapter, _ = saved(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))
    expected = PeftModel.from_pretrained(load_base(base, dtype), adapter)
    model = route(adapter, base, dtype, low_cpu).requires_grad_(False)
    assert 0 < sum(triggered(expected, requests())) < 6
    assert torch.equal(logits(model, requests()), logits(expected, requests()))


def test_an_adapter_is_written_in_the_oldest_format_that_can_hold_it(tmp_path):
    windowed, _ = saved(tmp_path / "windowed")
    dynamic, _ = saved(tmp_path / "dynamic", trigger_window=None)
    static, _ = saved_adapter(tmp_path / "static")
    fields = {"modulation", "strength_off", "strength_on", "trigger_suffix", "recheck_every"}
    for path, version in ((windowed, 3), (dynamic, 2)):
        found = json.loads((path / "adapter_config.json").read_text())
        assert found["format_version"] == version
        assert found["trigger_suffix"] == SUFFIX
        assert fields <= set(found)
        assert ("trigger_window" in found) == (version == 3)
    found = json.loads((static / "adapter_config.json").read_text())
    assert found["format_version"] == 1
    assert not fields & set(found)
    assert not [key for key in load_file(static / "adapter_model.safetensors") if "trigger" in key]


def test_an_adapter_without_windows_reads_the_mean_over_the_whole_turn(tmp_path):
    path, model = saved(tmp_path, trigger_window=None)
    loaded = PeftModel.from_pretrained(tiny_model(), path)
    assert loaded.peft_config["default"].trigger_window is None
    assert decisions(loaded, requests()) == decisions(model, requests())


def test_a_dynamic_adapter_costs_16_bytes_per_neuron_and_530_per_site(tmp_path):
    adapter, model = saved(tmp_path)
    neurons = model.get_neurons()
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert size <= 16 * neurons.total + 530 * len(neurons.sites) + 200
    assert sum(t.numel() * t.element_size() for t in load_file(adapter / "adapter_model.safetensors").values()) == (
        16 * neurons.total
    )


def test_an_adapter_file_shows_its_trigger(tmp_path):
    adapter, model = saved(tmp_path)
    file = AdapterFile.load(adapter)
    for site, weights in model.get_trigger().items():
        assert torch.equal(torch.cat([file.triggers[role][site] for role in sorted(file.triggers)]), weights)


def test_scales_are_swapped_in_place_together_with_their_trigger(tmp_path):
    adapter, model = saved(tmp_path)
    other = dynamic_model(std=0.1, trigger_window=None)
    set_random_triggers(other, seed=7)
    other.load_scales_(adapter)
    assert torch.equal(logits(other, requests()), logits(model, requests()))
    other.save_pretrained(tmp_path / "again")  # with windows now, which older versions cannot read
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["format_version"] == 3
    static, _ = saved_adapter(tmp_path / "static")
    with pytest.raises(ValueError, match="whose modulation differs"):
        other.load_scales_(static)


FAULTS = {
    "missing": (None, "got no neurontune_trigger at"),
    "NaN": (torch.tensor([[0.0, 0], [0, float("nan")], [0, 0], [0, 0], [0, 0]]), "got trigger weight nan at"),
    "infinite": (torch.tensor([[0.0, 0], [0, 0], [float("inf"), 0], [0, 0], [0, 0]]), "got trigger weight inf at"),
    "wrong shape": (torch.zeros(5), r"got neurontune_trigger of shape \(5,\) at .*; expected \(5, 2\)"),
    "integer": (torch.zeros(5, 2, dtype=torch.int32), "got neurontune_trigger of dtype torch.int32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_impossible_trigger_is_refused_and_the_model_is_whole_again(tmp_path, fault):
    value, message = FAULTS[fault]
    adapter, _ = saved(tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(f"{SITE}.neurontune_trigger")
    save_file(
        tensors | ({} if value is None else {f"{SITE}.neurontune_trigger": value}),
        adapter / "adapter_model.safetensors",
    )
    model = tiny_model()
    modules = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, adapter)
    assert [type(module) for module in model.modules()] == modules
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_transformers_load_adapter_refuses_a_trigger_that_is_not_finite(tmp_path):
    adapter, _ = saved(tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"{SITE}.neurontune_trigger"][1] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="got trigger weight nan at"):
        tiny_model().load_adapter(str(adapter))


def test_a_trigger_in_the_file_of_a_static_adapter_is_refused(tmp_path):
    adapter, _ = saved(tmp_path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modulation": "static", "checksum": None}))
    with pytest.raises(ValueError, match=r"got neurontune_trigger at 2 sites of .* with static modulation"):
        PeftModel.from_pretrained(tiny_model(), adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulation": "sometimes"}, r"got modulation='sometimes'; expected one of \['static', 'dynamic'\]"),
        ({"trigger_gate": "slope"}, "got trigger_gate='slope'"),
        ({"strength_on": float("nan")}, "got strength_on=nan; expected a finite number"),
        ({"trigger_threshold": "high"}, "got trigger_threshold='high'"),
        ({"trigger_suffix": []}, r"got trigger_suffix=\[\]; expected token ids"),
        ({"trigger_suffix": [-1]}, "got trigger_suffix"),
        ({"trigger_opening": [1.5]}, r"got trigger_opening=\[1.5\]; expected token ids"),
        ({"trigger_window": 3}, "got trigger_window=3; expected a positive even number of tokens"),
        ({"trigger_window": 0}, "got trigger_window=0"),
        ({"trigger_window": 4.0}, "got trigger_window=4.0"),
        ({"recheck_every": 0}, "got recheck_every=0; expected a positive number"),
        ({"trigger_gate": "ramp"}, "got trigger_ramp=0.0 with trigger_gate='ramp'; expected a number above 0"),
        ({"trigger_ramp": -1.0}, "got trigger_ramp=-1.0"),
        ({"recheck_every": 4, "trigger_gate": "sigmoid"}, "got recheck_every=4 with trigger_gate='sigmoid'"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NeuronTuneConfig(**{"modulation": "dynamic"} | options)


def test_a_trigger_is_given_to_an_attached_adapter_and_taken_off_again(tmp_path):
    reference = dynamic_model()
    model = static_twin()
    forced = logits(model, requests(), neurontune_strength=[1.0] * 6)
    assert torch.equal(logits(model, requests()), logits(model, requests()))
    config = reference.peft_config["default"]
    threshold = config.trigger_threshold
    model.set_trigger(reference.get_trigger(), bias=0.0, threshold=threshold, suffix=SUFFIX, window=4)
    assert torch.equal(logits(model, requests()), logits(reference, requests()))
    assert model.peft_config["default"].format_version == 3
    with pytest.raises(ValueError, match="got trigger_window=5; expected a positive even number"):
        model.set_trigger(reference.get_trigger(), bias=0.0, threshold=0.5, suffix=SUFFIX, window=5)
    assert torch.equal(logits(model, requests()), logits(reference, requests()))
    model.set_trigger(reference.get_trigger(), bias=0.0, threshold=0.5, suffix=SUFFIX, ramp=2.0)
    model.save_pretrained(tmp_path)
    saved_config = NeuronTuneConfig.from_pretrained(tmp_path)
    assert (saved_config.modulation, saved_config.trigger_gate, saved_config.trigger_ramp) == ("dynamic", "ramp", 2.0)
    model.set_trigger(reference.get_trigger(), bias=0.0, threshold=0.5, suffix=SUFFIX)
    assert model.peft_config["default"].trigger_gate == "step"
    model.set_modulation("static")
    torch.testing.assert_close(logits(model, requests()), forced, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="which has no trigger; expected one; fit it"):
        model.set_modulation("dynamic")


def static_twin():
    """The same scales as `dynamic_model()` without its trigger."""
    from adapters import randomize
    from peft import get_peft_model

    base = tiny_model()
    model = get_peft_model(base, dynamic_config(base, modulation="static", trigger_suffix=None))
    randomize(model, std=3.0)
    return model.requires_grad_(False).eval()


def test_trigger_weights_that_do_not_fit_are_refused():
    model = static_twin()
    weights = dynamic_model().get_trigger()
    site = next(iter(weights))
    for wrong, message in (
        ({site: weights[site]}, "got trigger weights that do not fit the neurons at"),
        (weights | {site: weights[site] * torch.nan}, "got trigger weight nan at"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_trigger(wrong, bias=0.0, threshold=0.0, suffix=SUFFIX)
    assert model.peft_config["default"].modulation == "static"
    assert model.get_trigger() == {}


def test_a_sum_of_adapters_is_static():
    model = dynamic_model()
    model.add_weighted_adapter(["default"], [0.5], "total")
    assert model.peft_config["total"].modulation == "static"
    assert model.get_trigger("total") == {}


def test_conversion_to_lora_says_what_to_do():
    from peft import convert_to_lora

    with pytest.raises(ValueError, match=r"call set_modulation\('static'\) first"):
        convert_to_lora(dynamic_model(), rank=2)
