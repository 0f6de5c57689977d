"""Presets: settings of the dials that an adapter brings along."""

import json

import pytest
import torch
from adapters import tuned_model
from architectures import tiny_model, tokens
from peft import PeftModel
from torch import nn
from triggers import dynamic_model

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.tuner.presets import Setting

PRESETS = {
    "security": {"strength": 1.5, "counts": {"safety": 6, "utility": 4}, "threshold": None},
    "utility": {"strength": 0.5, "counts": {"safety": 1, "utility": 0}, "measured": {"attack_success": 0.25}},
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


def saved(directory, presets=PRESETS, **options):
    model = tuned_model(**options)
    model.peft_config["default"].presets = presets
    model.save_pretrained(directory)
    return model


def test_a_preset_works_after_loading_and_equals_the_dials_turned_by_hand(tmp_path):
    saved(tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert list(model.presets) == ["security", "utility"]
    model.use_preset("utility")
    by_hand = PeftModel.from_pretrained(tiny_model(), tmp_path)
    by_hand.set_strength(0.5)
    by_hand.set_neuron_counts(safety=1, utility=0)
    assert torch.equal(logits(model), logits(by_hand))
    assert not torch.equal(logits(model), logits(tuned_model()))
    model.turn_to(Setting())
    assert torch.equal(logits(model), logits(tuned_model()))


def test_an_unknown_preset_is_refused_with_the_known_ones_and_changes_nothing(tmp_path):
    saved(tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path)
    before = logits(model)
    with pytest.raises(ValueError, match=r"got preset 'certified'; expected one of \['security', 'utility'\]"):
        model.use_preset("certified")
    assert torch.equal(logits(model), before)


def test_adapters_without_presets_are_written_as_before():
    assert "presets" not in NeuronTuneConfig().to_dict()
    assert tuned_model().presets == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": float("nan")}, "preset 'p': got strength=nan; expected a finite number"),
        ({"strength": "1"}, "expected a finite number"),
        ({"counts": {"safety": 7}}, "got safety=7; expected 0 to 6"),
        ({"counts": {"safety": -1}}, "expected {role: number of neurons}"),
        ({"counts": {"other": 1}}, "got counts of role 'other'"),
        ({"threshold": 0.5}, "which has no trigger"),
        ({"strenght": 1.0}, r"got a preset with the fields \['strenght'\]"),
        ([1.0], "expected an object of"),
    ],
)
def test_presets_that_could_not_be_used_are_refused_at_load_time(tmp_path, wrong, message):
    saved(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["presets"] = {"p": wrong}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(tiny_model(), tmp_path)


def test_a_preset_sets_the_threshold_of_the_trigger():
    model = dynamic_model()
    own = model.peft_config["default"].trigger_threshold
    model.peft_config["default"].presets = {"open": {"strength": 1.0, "threshold": own + 100.0}}
    with model.turned_to(model.presets["open"]):
        assert model.peft_config["default"].trigger_threshold == own + 100.0
    assert model.peft_config["default"].trigger_threshold == own
    model.use_preset("open")
    assert model.peft_config["default"].trigger_threshold == own + 100.0


def test_presets_go_when_the_trigger_that_they_were_measured_with_goes():
    model = dynamic_model()
    model.peft_config["default"].presets = {"open": {"threshold": 0.0}}
    model.set_modulation("dynamic")
    assert list(model.presets) == ["open"]
    model.set_modulation("static")
    assert model.presets == {}


def test_dials_come_back_when_a_with_block_fails():
    model = tuned_model()
    model.set_strength(0.25)
    before = logits(model)
    with pytest.raises(KeyError), model.turned_to(Setting(2.0, {"safety": 1})):
        raise KeyError
    assert torch.equal(logits(model), before)
