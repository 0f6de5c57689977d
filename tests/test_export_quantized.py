"""Merging into quantised checkpoints: rows are scaled by their scale factors, and no quantised integer changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from exports import Case, logits, make_case
from quantized_files import FORMATS, Format, parts_of, quantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neurontune_peft.export import export_adapter
from neurontune_peft.export.change import change_at
from neurontune_peft.export.gated import Carrier, find_carrier
from neurontune_peft.tuner.files import AdapterFile

SCALES = ("scales", "weight_scale", "SCB", "absmax")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """A tiny Llama and an adapter that scales some neurons down, up, to their negative and to 0."""
    case = make_case(tmp_path_factory.mktemp("dense"))
    path = case.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("neurontune_delta"):
            tensor[:4] = torch.tensor([-1.0, -1.75, 1.5, 0.3])
    save_file(tensors, path, metadata={"format": "pt"})
    return case


def scales_of(adapter: Path, site: str, width: int) -> torch.Tensor:
    """One scale per neuron of a site, float32, shape `(width,)`."""
    index, delta = change_at(AdapterFile.load(adapter)).sites[site]
    return torch.ones(width).index_copy(0, index, 1 + delta)


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def merged(case: Case, base: Path, output: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of the base and of what is exported."""
    export_adapter(case.adapter, output, to="merged", model=base, check="weights")
    return load_file(base / "model.safetensors"), load_file(output / "model.safetensors")


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_rows_are_scaled_by_their_factors_and_all_other_bytes_stay(case, tmp_path, form):
    base = quantize(case.base, tmp_path / "base", form)
    before, after = merged(case, base, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    changed = {name for name in before if bits(before[name]) != bits(after[name])}
    assert {name.rpartition(".")[2] for name in changed} <= set(SCALES)
    assert {name.rpartition(".")[0] for name in changed} == {f"model.layers.{i}.mlp.up_proj" for i in (0, 1)}
    for layer in (0, 1):
        scale = scales_of(case.adapter, f"model.layers.{layer}.mlp.down_proj", 48).unsqueeze(1)
        assert {-0.75, 0.0} < set(scale.flatten().tolist())
        held, found = (form.unpack(parts_of(part, f"model.layers.{layer}.mlp.up_proj")) for part in (before, after))
        name = next(n for n in before if n.endswith(SCALES) and f"{layer}.mlp.up_proj" in n)
        torch.testing.assert_close(found, held * scale, rtol=torch.finfo(before[name].dtype).eps, atol=0)


def test_a_bias_is_scaled_with_its_rows(tmp_path):
    dense = make_case(tmp_path, config={"target_modules": ["down_proj"]}, mlp_bias=True)
    tensors = load_file(dense.base / "model.safetensors")
    for name in tensors:
        if name.endswith("bias"):
            tensors[name] = torch.randn_like(tensors[name])
    save_file(tensors, dense.base / "model.safetensors", metadata={"format": "pt"})
    before, after = merged(dense, quantize(dense.base, tmp_path / "quantised", FORMATS["gptq"]), tmp_path / "out")
    for layer in (0, 1):
        scale = scales_of(dense.adapter, f"model.layers.{layer}.mlp.down_proj", 48)
        name = f"model.layers.{layer}.mlp.up_proj.bias"
        torch.testing.assert_close(after[name], before[name] * scale, rtol=1e-6, atol=0)
        other = f"model.layers.{layer}.mlp.down_proj.bias"
        assert torch.equal(after[other], before[other])


def test_a_projection_that_was_left_in_floating_point_is_scaled_itself(case, tmp_path):
    base = quantize(case.base, tmp_path / "base", FORMATS["awq"], keep=("lm_head", "up_proj"))
    before, after = merged(case, base, tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)}
    scale = scales_of(case.adapter, "model.layers.0.mlp.down_proj", 48).unsqueeze(1)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(after[name], before[name] * scale, rtol=1e-6, atol=0)


def test_sites_that_are_not_quantised_are_merged_as_ever(case, tmp_path):
    base = quantize(case.base, tmp_path / "base", FORMATS["awq"], keep=("lm_head", "down_proj"))
    before, after = merged(case, base, tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}


def test_neurons_on_the_output_side_are_rows_of_their_own_projection(tmp_path):
    dense = make_case(tmp_path, config={"neuron_side": "output", "target_modules": ["q_proj"]})
    form = FORMATS["int4"]
    before, after = merged(dense, quantize(dense.base, tmp_path / "quantised", form), tmp_path / "out")
    site = "model.layers.1.self_attn.q_proj"
    held, found = (form.unpack(parts_of(part, site)) for part in (before, after))
    torch.testing.assert_close(found, held * scales_of(dense.adapter, site, 32).unsqueeze(1), rtol=1e-3, atol=0)
    assert not torch.equal(found, held)


def test_neurons_of_a_fused_projection_are_rows_of_its_second_half(tmp_path):
    dense = make_case(tmp_path, "phi3", config={"target_modules": ["mlp.down_proj"]})
    form = FORMATS["fp8"]
    before, after = merged(dense, quantize(dense.base, tmp_path / "quantised", form), tmp_path / "out")
    held, found = (form.unpack(parts_of(part, "model.layers.0.mlp.gate_up_proj")) for part in (before, after))
    width = held.shape[0] // 2
    assert torch.equal(found[:width], held[:width])
    scale = scales_of(dense.adapter, "model.layers.0.mlp.down_proj", width).unsqueeze(1)
    torch.testing.assert_close(found[width:], held[width:] * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_merged_bitsandbytes_model_answers_as_the_adapter_on_the_quantised_base(tmp_path, kind):
    shapes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_key_value_heads": 4}
    dense = make_case(tmp_path, **shapes)  # such as the kernels for CPUs take
    eight = BitsAndBytesConfig(load_in_8bit=True)
    how = eight if kind == "int8" else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(dense.base, quantization_config=how).save_pretrained(tmp_path / "q")
    made = export_adapter(dense.adapter, tmp_path / "out", to="merged", model=tmp_path / "q", check="logits")
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "q", tmp_path / "out"))
    ends = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert ends == ({"SCB"} if kind == "int8" else {"absmax"})
    # The kernel of 8 bits sees the same integers; that of 4 bits computes in bfloat16 on CPUs.
    assert made.checks[0].logits.relative < (1e-4 if kind == "int8" else torch.finfo(torch.bfloat16).eps)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "q").eval()
    assert (logits(base) - logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "limit"), [("int4-symmetric", 1e-4), ("int8", 0.005), ("fp8", 1e-4)])
def test_a_merged_compressed_tensors_model_answers_as_the_adapter_on_the_quantised_base(case, tmp_path, name, limit):
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
    base = quantize(case.base, tmp_path / "base", FORMATS[name])
    made = export_adapter(case.adapter, tmp_path / "out", to="merged", model=base, check="logits")
    # The activations of int8 are integers too: rounding may take the next one.
    assert made.checks[0].logits.relative < limit
    plain, merged_model = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, tmp_path / "out"))
    assert (logits(plain) - logits(merged_model)).abs().max() > 2 * limit * logits(plain).abs().max()


def changed_files(form: Format, **tensors: object) -> Format:
    """A format whose `weight_scale` is made into something else."""

    def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        found = form.pack(weight)
        return found | {name: change(found[name]) for name, change in tensors.items()}

    return replace(form, pack=pack)


REFUSED = {
    "one factor for a tensor": (
        changed_files(FORMATS["fp8"], weight_scale=lambda scale: scale[:1, 0]),
        "are one for the whole tensor",
    ),
    "blocks of rows": (
        changed_files(FORMATS["fp8"], weight_scale=lambda scale: scale[::8].repeat(1, 2)),
        "are shared by blocks of rows",
    ),
    "factors of 8 bits": (
        changed_files(FORMATS["int4"], weight_scale=lambda scale: scale.to(torch.float8_e4m3fn)),
        "its scale factors are F8_E4M3, in which a product would be rounded",
    ),
    "another order": (
        replace(FORMATS["gptq"], config=FORMATS["gptq"].config | {"checkpoint_format": "marlin"}),
        "the layout 'marlin' orders scale factors in a way of its own",
    ),
    "another layout": (
        replace(FORMATS["awq"], config=FORMATS["awq"].config | {"version": "gemv"}),
        "the layout 'gemv'",
    ),
    "rotated weights": (
        replace(FORMATS["int8"], config=FORMATS["int8"].config | {"transform_config": {"config_groups": {"a": 1}}}),
        "its weights are rotated",
    ),
    "a product that is not finite": (
        changed_files(FORMATS["gptq"], scales=lambda scale: torch.full_like(scale, 60000.0)),
        "a scaled factor is not finite in F16",
    ),
    "a method that is not known": (
        replace(FORMATS["fp8"], config={"quant_method": "quanto", "weights": "float8"}),
        "where this format keeps scale factors of output rows is not known here",
    ),
}


@pytest.mark.parametrize(("form", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exact_is_refused_with_its_reason_and_nothing_written(case, tmp_path, form, reason):
    base = quantize(case.base, tmp_path / "base", form)
    with pytest.raises(ValueError, match=reason):
        export_adapter(case.adapter, tmp_path / "out", to="merged", model=base, check="weights")
    assert not list(tmp_path.glob("*out*"))


def test_quantised_outputs_of_projections_are_refused(case, tmp_path):
    config = json.loads(json.dumps(FORMATS["int8"].config))
    config["config_groups"]["group_0"]["output_activations"] = {"num_bits": 8}
    base = quantize(case.base, tmp_path / "base", replace(FORMATS["int8"], config=config))
    with pytest.raises(ValueError, match="outputs of its projections are quantised, too"):
        export_adapter(case.adapter, tmp_path / "out", to="merged", model=base, check="weights")


def test_double_quantisation_is_refused(tmp_path):
    dense = make_case(tmp_path, hidden_size=64, intermediate_size=128)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(dense.base, quantization_config=how).save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="its scale factors are quantised themselves"):
        export_adapter(dense.adapter, tmp_path / "out", to="merged", model=tmp_path / "q", check="weights")


def test_blocks_that_span_rows_are_refused(tmp_path):
    dense = make_case(tmp_path)  # rows of 32, blocks of 64
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(dense.base, quantization_config=how).save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="its blocks of 64 span rows of 32"):
        export_adapter(dense.adapter, tmp_path / "out", to="merged", model=tmp_path / "q", check="weights")


def test_other_formats_are_computed_from_floating_point_weights_only(case, tmp_path):
    base = quantize(case.base, tmp_path / "base", FORMATS["gptq"])
    with pytest.raises(ValueError, match="expected floating-point weights, of which lora is computed"):
        export_adapter(case.adapter, tmp_path / "out", to="lora", model=base)


def test_a_model_that_does_not_run_here_is_compared_by_weights_and_says_so(case, tmp_path, caplog):
    base = quantize(case.base, tmp_path / "base", FORMATS["awq"])
    made = export_adapter(case.adapter, tmp_path / "out", to="merged", model=base)
    assert made.checks[0].logits is None
    assert "logits not compared: the quantised model does not run here" in caplog.text
    with pytest.raises(ValueError, match="got a quantised model that does not run here"):
        export_adapter(case.adapter, tmp_path / "out2", to="merged", model=base, check="logits")


@pytest.mark.parametrize(
    ("model_type", "site", "carrier"),
    [
        ("llama", "model.layers.0.mlp.down_proj", Carrier("model.layers.0.mlp.up_proj", 0, 1)),
        ("gpt2", "transformer.h.0.mlp.c_proj", None),
        ("opt", "model.decoder.layers.0.fc2", None),
    ],
)
def test_neurons_are_carried_by_what_multiplies_them_and_by_nothing_else(model_type, site, carrier):
    assert find_carrier(tiny_model(model_type), site) == carrier


def test_a_gate_without_curvature_in_front_of_the_product_is_no_carrier():
    """The activation of a gate is not linear, though it may be homogeneous: relu(2g) = 2 relu(g)."""
    model = tiny_model("llama", hidden_act="relu")
    assert find_carrier(model, "model.layers.0.mlp.down_proj") == Carrier("model.layers.0.mlp.up_proj", 0, 1)
