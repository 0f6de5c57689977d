"""An adapter gives bit-equal logits however it is loaded, and a broken one is refused before anything changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters import randomize, saved_adapter, some_neurons, tuned_model
from architectures import tiny_model, tokens
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from neurontune_peft import NeuronTuneConfig

DTYPES = (torch.float32, torch.bfloat16)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


def load_base(base: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def by_peft_model(adapter: Path, base: Path, dtype: torch.dtype, low_cpu: bool) -> nn.Module:
    model = load_base(base, dtype)
    return PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=low_cpu)


def by_auto_peft_model(adapter: Path, base: Path, dtype: torch.dtype, low_cpu: bool) -> nn.Module:
    return AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=dtype, low_cpu_mem_usage=low_cpu).eval()


def by_load_state_dict(adapter: Path, base: Path, dtype: torch.dtype, low_cpu: bool) -> nn.Module:
    model = get_peft_model(load_base(base, dtype), PeftConfig.from_pretrained(adapter), low_cpu_mem_usage=low_cpu)
    saved = load_file(adapter / "adapter_model.safetensors")
    renamed = {f"{key}.default": tensor for key, tensor in saved.items()}
    result = model.load_state_dict(renamed, strict=False, assign=low_cpu)
    assert not result.unexpected_keys
    return model.eval()


def by_set_peft_model_state_dict(adapter: Path, base: Path, dtype: torch.dtype, low_cpu: bool) -> nn.Module:
    model = get_peft_model(load_base(base, dtype), PeftConfig.from_pretrained(adapter), low_cpu_mem_usage=low_cpu)
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"), low_cpu_mem_usage=low_cpu)
    return model.eval()


def by_transformers_load_adapter(adapter: Path, base: Path, dtype: torch.dtype, low_cpu: bool) -> nn.Module:
    model = load_base(base, dtype)
    model.load_adapter(str(adapter), low_cpu_mem_usage=low_cpu)
    return model


ROUTES = (
    by_peft_model,
    by_auto_peft_model,
    by_load_state_dict,
    by_set_peft_model_state_dict,
    by_transformers_load_adapter,
)


def save_with_base(directory: Path, dtype: torch.dtype, *, sparse: bool = True) -> tuple[Path, Path, torch.Tensor]:
    """Save base and adapter so that the adapter's configuration names the base; returns both and the logits."""
    base_dir, adapter_dir = directory / "base", directory / "adapter"
    tiny_model(dtype=dtype).save_pretrained(base_dir)
    model = tuned_model(load_base(base_dir, dtype), sparse=sparse)
    model.save_pretrained(adapter_dir)
    return adapter_dir, base_dir, logits(model)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("low_cpu", [False, True], ids=["", "low_cpu_mem_usage"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_five_loading_routes_give_bit_equal_logits(tmp_path, route, dtype, low_cpu, sparse):
    adapter, base, expected = save_with_base(tmp_path, dtype, sparse=sparse)
    model = route(adapter, base, dtype, low_cpu)
    assert torch.equal(logits(model), expected)
    deltas = [p for n, p in model.named_parameters() if "neurontune_delta" in n]
    assert {delta.dtype for delta in deltas} == {torch.float32}
    assert not torch.equal(expected, logits(tiny_model(dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_five_loading_routes_give_bit_equal_logits_in_a_fresh_process(tmp_path, dtype):
    adapter, base, expected = save_with_base(tmp_path, dtype)
    torch.save(expected, tmp_path / "expected.pt")
    script = f"""
import sys, torch
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import neurontune_peft
from test_loading import ROUTES, logits
expected = torch.load({str(tmp_path / "expected.pt")!r})
for route in ROUTES:
    for low_cpu in (False, True):
        found = logits(route(Path({str(adapter)!r}), Path({str(base)!r}), {dtype}, low_cpu))
        assert torch.equal(found, expected), (route, low_cpu)
print("all equal")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("all equal"), done.stderr


def test_a_second_adapter_loads_beside_the_first(tmp_path):
    adapter, model = saved_adapter(tmp_path)
    expected = logits(model)
    other = PeftModel.from_pretrained(tiny_model(), adapter, adapter_name="first")
    other.load_adapter(adapter, adapter_name="second")
    other.set_adapter("second")
    assert torch.equal(logits(other), expected)


def test_saved_file_costs_at_most_16_bytes_per_neuron_400_per_site_and_1_kilobyte(tmp_path):
    for sparse in (True, False):
        adapter, model = saved_adapter(tmp_path / str(sparse), sparse=sparse)
        neurons = model.get_neurons()
        size = (adapter / "adapter_model.safetensors").stat().st_size
        assert size <= 16 * neurons.total + 400 * len(neurons.sites) + 1000


def test_the_same_adapter_is_saved_as_byte_identical_files(tmp_path):
    first, _ = saved_adapter(tmp_path / "first")
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from adapters import saved_adapter
saved_adapter(Path({str(tmp_path / "second")!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (first / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


# Bad input: each refusal leaves the model with the very modules and outputs that it had.


def rewrite(adapter: Path, **changes: object) -> None:
    """Replace tensors of the first site by name, for example `delta=...`; `None` removes one."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    site = sorted(tensors)[0].rsplit(".", 1)[0]
    for name, value in changes.items():
        key = f"{site}.neurontune_{name}"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path)


def reconfigure(adapter: Path, **changes: object) -> None:
    """Change settings as a writer would that leaves no checksum."""
    path = adapter / "adapter_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "checksum"}))


FAULTS = {
    "index out of range": ({"index": torch.tensor([5, 0, 48, 3, 40], dtype=torch.int32)}, "got neuron index 48 at"),
    "index negative": ({"index": torch.tensor([5, -1, 17, 3, 40], dtype=torch.int32)}, "got neuron index -1 at"),
    "index repeated": ({"index": torch.tensor([5, 5, 17, 3, 40], dtype=torch.int32)}, "index 5 more than once"),
    "NaN delta": ({"delta": torch.tensor([0.0, float("nan"), 0, 0, 0])}, "got delta nan at"),
    "infinite delta": ({"delta": torch.tensor([0.0, 0, 0, 0, float("inf")])}, "got delta inf at"),
    "wrong shape": ({"delta": torch.zeros(4)}, r"got neurontune_delta of shape \(4,\)"),
    "two dimensions": ({"delta": torch.zeros(5, 1)}, r"got neurontune_delta of shape \(5, 1\)"),
    "float index": ({"index": torch.tensor([5.0, 0, 17, 3, 40])}, "got neurontune_index of dtype torch.float32"),
    "integer delta": ({"delta": torch.zeros(5, dtype=torch.int32)}, "got neurontune_delta of dtype torch.int32"),
    "missing tensor": ({"rank": None}, "got no neurontune_rank at"),
    "missing site": ({"delta": None, "index": None, "rank": None}, "got an adapter with 1 sites; expected the 2"),
    "ranks repeated": ({"rank": torch.tensor([0, 0, 4, 1, 3], dtype=torch.int32)}, "got ranks of role 'safety'"),
}


@pytest.mark.parametrize("low_cpu", [False, True], ids=["", "low_cpu_mem_usage"])
@pytest.mark.parametrize("fault", FAULTS)
def test_impossible_tensors_are_refused_and_the_model_is_whole_again(tmp_path, fault, low_cpu):
    changes, message = FAULTS[fault]
    adapter, _ = saved_adapter(tmp_path)
    rewrite(adapter, **changes)
    model = tiny_model()
    before, modules = logits(model), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=low_cpu)
    assert [type(module) for module in model.modules()] == modules
    assert torch.equal(logits(model), before)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_leaves_an_attached_adapter_as_it_is(tmp_path, fault):
    changes, message = FAULTS[fault]
    adapter, model = saved_adapter(tmp_path)
    rewrite(adapter, **changes)
    before = get_peft_model_state_dict(model)
    before = {key: tensor.clone() for key, tensor in before.items()}
    with pytest.raises(ValueError, match=message):
        set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    after = get_peft_model_state_dict(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("fault", ["index out of range", "index repeated", "NaN delta"])
def test_transformers_load_adapter_refuses_impossible_tensors(tmp_path, fault):
    changes, message = FAULTS[fault]
    adapter, _ = saved_adapter(tmp_path)
    rewrite(adapter, **changes)
    with pytest.raises(ValueError, match=message):
        tiny_model().load_adapter(str(adapter))


@pytest.mark.parametrize("kept", [0, 3, 100, 700])
def test_a_truncated_file_is_refused_before_the_model_is_touched(tmp_path, kept):
    adapter, _ = saved_adapter(tmp_path)
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    model = tiny_model()
    modules = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"got .*cannot be read.*expected a whole safetensors file; "):
        PeftModel.from_pretrained(model, adapter)
    assert [type(module) for module in model.modules()] == modules


def test_a_missing_file_is_refused_before_the_model_is_touched(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    (adapter / "adapter_model.safetensors").unlink()
    model = tiny_model()
    modules = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"got no adapter_model.safetensors in .*; expected"):
        PeftModel.from_pretrained(model, adapter)
    assert [type(module) for module in model.modules()] == modules


def test_a_newer_format_version_is_refused(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    reconfigure(adapter, format_version=4)
    with pytest.raises(ValueError, match=r"got format_version 4 .*; expected 1 to 3; upgrade neurontune_peft"):
        PeftModel.from_pretrained(tiny_model(), adapter)


def test_sites_of_another_width_are_refused(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    widths = {"model.layers.0.mlp.down_proj": 56, "model.layers.1.mlp.down_proj": 56}
    reconfigure(adapter, site_widths=widths)
    with pytest.raises(ValueError, match="with width 56; expected 48, the width in this model"):
        PeftModel.from_pretrained(tiny_model(), adapter)


def test_another_base_model_gives_a_warning_that_names_both(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    reconfigure(adapter, base_model_name_or_path="the/right-model")
    with pytest.warns(UserWarning, match=r"got base model .*LlamaForCausalLM.*expected 'the/right-model'"):
        PeftModel.from_pretrained(tiny_model(seed=1), adapter)


def test_another_base_model_is_an_error_when_strict(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    config = NeuronTuneConfig.from_pretrained(adapter)
    config.strict = True
    model = tiny_model(seed=1)
    modules = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="got base model"):
        PeftModel.from_pretrained(model, adapter, config=config)
    assert [type(module) for module in model.modules()] == modules


def test_the_right_base_model_in_another_dtype_gives_no_warning(tmp_path, recwarn):
    adapter, _ = saved_adapter(tmp_path)
    PeftModel.from_pretrained(tiny_model(dtype=torch.bfloat16), adapter)
    assert not [w for w in recwarn if "base model" in str(w.message)]


def test_a_full_state_dict_of_a_peft_model_loads_strictly(tmp_path):
    model = tuned_model()
    other = get_peft_model(tiny_model(seed=3), NeuronTuneConfig(neurons=some_neurons(tiny_model())))
    randomize(other, seed=9)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(other), logits(model))
