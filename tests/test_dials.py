"""Swapping an attached adapter's numbers in place."""

import pytest
import torch
from adapters import randomize, saved_adapter, some_neurons, tuned_model
from architectures import tiny_model, tokens
from peft import get_peft_model
from torch import nn

from neurontune_peft import Neurons, NeuronTuneConfig


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


def other_adapter(directory) -> tuple[str, torch.Tensor]:
    """Another adapter with the same number of neurons per site and role, but other neurons and scales."""
    base = tiny_model()
    made = some_neurons(base)
    ranked = {role: [(site, (index + 1) % 48) for site, index in made.ranked(role)] for role in made.roles}
    model = get_peft_model(base, NeuronTuneConfig(neurons=Neurons.from_ranked(ranked, widths=made.widths)))
    randomize(model, seed=7)
    model.save_pretrained(directory)
    return str(directory), logits(model)


@pytest.mark.parametrize("merged", [False, True])
def test_load_scales_replaces_the_numbers_in_place(tmp_path, merged):
    path, expected = other_adapter(tmp_path)
    model = tuned_model()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    if merged:
        model.merge_adapter()
    model.load_scales_(path)
    if merged:
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
        model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


def test_load_scales_keeps_the_dials(tmp_path):
    path, expected = other_adapter(tmp_path)
    model = tuned_model()
    model.set_strength(0.0)
    model.load_scales_(path)
    assert torch.equal(logits(model), logits(tiny_model()))
    model.set_strength(1.0)
    assert torch.equal(logits(model), expected)


def test_load_scales_refuses_other_shapes_and_broken_files_and_changes_nothing(tmp_path):
    model = tuned_model()
    before = logits(model)
    dense, _ = saved_adapter(tmp_path / "dense", sparse=False)
    with pytest.raises(ValueError, match="whose neuron_counts differs from that of adapter 'default'"):
        model.load_scales_(dense)
    broken, _ = saved_adapter(tmp_path / "broken")
    content = (broken / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(content[:-3])
    with pytest.raises(ValueError, match="cannot be read"):
        model.load_scales_(broken)
    foreign = tuned_model(tiny_model(seed=4))
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(ValueError, match="whose base_model_fingerprint differs"):
        model.load_scales_(tmp_path / "foreign")
    assert torch.equal(logits(model), before)
