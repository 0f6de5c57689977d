"""The trigger alone: exported from an adapter, it decides as the adapter does, and leaves the base model as it is."""

import json

import pytest
import torch
from adapters import saved_adapter
from architectures import tiny_model
from helpers import tiny_llama, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_trigger_fit import OPTIONS, attached, prompt_set
from triggers import decisions, dynamic_model, logits, requests, triggered

from neurontune_peft import fit_trigger
from neurontune_peft.tuner.gate import TriggerGate, twin_of
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.trigger_file import SETTINGS, TENSORS, Trigger, export_trigger

TEXTS = ["ka zz!zz!", "lo ab.ab.", "a", "be ab.ab. and so on, for some more words"]


def exported(directory, **options):
    """A dynamic adapter, and its trigger alone."""
    model = dynamic_model(**options)
    model.save_pretrained(directory / "adapter")
    return model, export_trigger(directory / "adapter", directory / "trigger")


def gate_of(path, model=None, **options):
    with pytest.warns(UserWarning, match="got a tokenizer whose prompts end in"):  # the random trigger has another one
        return TriggerGate.load(path, tiny_model() if model is None else model, tiny_tokenizer(), **options)


@pytest.mark.parametrize("options", [{}, {"trigger_gate": "sigmoid"}, {"recheck_every": 2}, {"strength_on": 1.5}])
def test_an_exported_trigger_flags_what_the_adapter_scales(tmp_path, options):
    model, path = exported(tmp_path, **options)
    gate, ids = gate_of(path), requests()
    scores = gate.scores_of(ids, torch.ones_like(ids))
    assert scores == [decision.score for decision in decisions(model, ids)]
    flags = [score > gate.threshold for score in scores]
    assert flags.count(True) == 3
    if "trigger_gate" not in options:
        assert flags == triggered(model, ids)


def test_what_is_read_from_a_file_is_what_is_read_from_the_model(tmp_path):
    model, path = exported(tmp_path)
    one, other = Trigger.of(model), Trigger.load(path)
    assert (one.widths, one.fields, one.neuron_side) == (other.widths, other.fields, other.neuron_side)
    for site, weights in one.weights.items():
        assert torch.equal(weights, other.weights[site])
        assert torch.equal(one.indices[site], other.indices[site])
    assert one.numbers == 2 * model.get_neurons().total + 2


def test_a_gate_leaves_the_base_model_as_it_was_and_shares_its_weights(tmp_path):
    _, path = exported(tmp_path)
    base = tiny_model()
    base.lm_head.weight.requires_grad_(False)
    before, flags = logits(base, requests()), [p.requires_grad for p in base.parameters()]
    gate = gate_of(path, base)
    gate.scores_of(requests(), torch.ones_like(requests()))
    assert torch.equal(logits(base, requests()), before)
    assert [p.requires_grad for p in base.parameters()] == flags
    assert not any(isinstance(module, NeuronTuneLayer) for module in base.modules())
    assert {p.data_ptr() for p in base.parameters()} <= {p.data_ptr() for p in gate._model.parameters()}


def test_a_fitted_gate_reads_texts_in_any_order_and_batch_as_the_adapter_does():
    model, tokenizer = attached(), tiny_tokenizer()
    assert fit_trigger(model, tokenizer, prompt_set(), **OPTIONS).dynamic
    model.peft_config["default"].trigger_threshold = 0.0  # halfway, as only 80 requests were fitted on
    gate = TriggerGate(Trigger.of(model), tiny_llama(), tokenizer)
    alone = [gate.scores([text])[0] for text in TEXTS]
    assert gate.scores(TEXTS, batch_size=3) == pytest.approx(alone, abs=1e-5)
    assert gate(TEXTS)[:2] == [True, False]
    assert gate([]) == []


def test_a_request_without_prompt_end_is_left_to_the_base_model(tmp_path):
    _, path = exported(tmp_path)
    gate, ids = gate_of(path), requests()[:2, :-1]
    assert gate.scores_of(ids, torch.ones_like(ids)) == [None, None]


def test_an_adapter_on_one_twin_does_not_touch_the_other():
    base = tiny_model()
    before = logits(base, requests())
    twin = get_peft_model(twin_of(base), LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    assert torch.equal(logits(base, requests()), before)
    assert not torch.equal(logits(twin, requests()), before)


def test_a_static_adapter_has_no_trigger_to_export_and_nothing_is_written(tmp_path):
    adapter, _ = saved_adapter(tmp_path / "static")
    with pytest.raises(ValueError, match="got an adapter with modulation='static', which has no trigger; expected"):
        export_trigger(adapter, tmp_path / "trigger")
    assert not (tmp_path / "trigger").exists()


def test_a_trigger_that_an_older_version_wrote_is_a_step(tmp_path):
    _, path = exported(tmp_path)
    values = json.loads((path / SETTINGS).read_text())
    assert values["format_version"] == 2
    older = {k: v for k, v in values.items() if k not in ("trigger_ramp", "trigger_window", "checksum")}
    assert len(older) == len(values) - 3
    (path / SETTINGS).write_text(json.dumps(older | {"format_version": 1}))
    assert Trigger.load(path).fields["trigger_ramp"] == 0.0
    assert Trigger.load(path).fields["trigger_window"] is None


def test_a_trigger_without_windows_is_written_as_older_versions_read_it(tmp_path):
    model, path = exported(tmp_path, trigger_window=None)
    values = json.loads((path / SETTINGS).read_text())
    assert values["format_version"] == 1
    assert "trigger_window" not in values
    ids = requests()
    assert gate_of(path).scores_of(ids, torch.ones_like(ids)) == [d.score for d in decisions(model, ids)]


def test_damaged_files_are_refused(tmp_path):
    _, path = exported(tmp_path)
    with pytest.raises(ValueError, match=r"got '.*missing' .*; expected trigger.json and trigger.safetensors"):
        Trigger.load(tmp_path / "missing")
    settings = path / SETTINGS
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps(values | {"format_version": 9}))
    with pytest.raises(ValueError, match="format_version 9 in the trigger"):
        Trigger.load(path)
    settings.write_text(json.dumps(values))
    tensors = load_file(path / TENSORS)
    name = next(key for key in tensors if key.endswith("trigger"))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, path / TENSORS)
    with pytest.raises(ValueError, match="expected finite ones, a row per neuron"):
        Trigger.load(path)
    (path / TENSORS).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"expected trigger\.json and trigger\.safetensors of a trigger"):
        Trigger.load(path)


def test_another_model_or_template_is_said_and_refused_where_strict(tmp_path):
    model, path = exported(tmp_path)
    other = tiny_model()
    other.model.layers[0].mlp.down_proj.weight.data.add_(1.0)
    with pytest.raises(ValueError, match=r"got base model .*; expected"):
        TriggerGate.load(path, other, tiny_tokenizer(), strict=True)
    with pytest.raises(ValueError, match="got a tokenizer whose prompts end in"):
        TriggerGate.load(path, tiny_model(), tiny_tokenizer(), strict=True)
    with pytest.raises(ValueError, match="with adapters; expected the plain base model"):
        TriggerGate.load(path, model, tiny_tokenizer())
