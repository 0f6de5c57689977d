"""Exports as LoRA and IA3: plain PEFT answers with them as the adapter does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from exports import Case, logits, make_case
from peft import PeftModel
from safetensors.torch import load_file
from triggers import dynamic_model

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.export import export_adapter
from neurontune_peft.export.change import change_at
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.engines import VLLM_RANKS, lora_notes, vllm_rank
from neurontune_peft.export.lora import EXACT, check_factors, lora_factors, read_lora
from neurontune_peft.tuner.files import AdapterFile

ALONE = """
import sys, torch
sys.modules["neurontune_peft"] = None  # importing it fails
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor([[1, 40, 90, 11, 200, 7, 33, 150]])).logits[0], out)
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("llama"))


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def lora(case: Case, directory: Path) -> PeftModel:
    return PeftModel.from_pretrained(case.model(), directory).eval()


def config_of(directory: Path) -> dict:
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize("to", ["lora", "ia3"])
def test_plain_peft_answers_as_the_adapter_in_a_process_without_this_package(case, tmp_path, to):
    export_adapter(case.adapter, tmp_path / "out", to=to)
    program = [sys.executable, "-c", ALONE, str(case.base), str(tmp_path / "out"), str(tmp_path / "logits.pt")]
    subprocess.run(program, check=True, capture_output=True)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert error_of(found, logits(case.tuned())) < 1e-5
    assert error_of(found, logits(case.model())) > 1e-3


def test_a_lora_is_exact_and_has_one_rank_without_patterns(case, tmp_path):
    made = export_adapter(case.adapter, tmp_path / "out", to="lora", strengths=[0.7])
    assert made.checks[0].weight_error <= EXACT
    assert made.checks[0].logits.greedy == made.checks[0].logits.tokens
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (5, 5, ["down_proj"])
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    shapes = {tensor.shape for key, tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").items()}
    assert shapes == {(5, 48), (32, 5)}
    assert error_of(logits(lora(case, tmp_path / "out")), logits(case.tuned(strength=0.7))) < 1e-5


def test_sites_with_fewer_neurons_are_filled_up_with_zeros(case, tmp_path):
    export_adapter(case.adapter, tmp_path / "out", to="lora", counts={"safety": 3, "utility": 1})
    factors = read_lora(tmp_path / "out")
    used = {site: int((pair.b.abs().sum(0) > 0).sum()) for site, pair in factors.items()}
    assert sorted(used.values()) == [2, 2]
    assert {pair.a.shape[0] for pair in factors.values()} == {2}
    assert error_of(logits(lora(case, tmp_path / "out")), logits(case.tuned(safety=3, utility=1))) < 1e-5
    export_adapter(case.adapter, tmp_path / "one", to="lora", counts={"safety": 1, "utility": 2})
    ranks = {site: int((pair.b.abs().sum(0) > 0).sum()) for site, pair in read_lora(tmp_path / "one").items()}
    assert sorted(ranks.values()) == [1, 2]


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "qwen3", "phi3", "falcon"])
@pytest.mark.parametrize("to", ["lora", "ia3"])
def test_other_architectures_export_exactly(tmp_path, model_type, to):
    case = make_case(tmp_path, model_type)
    export_adapter(case.adapter, tmp_path / "out", to=to)
    assert error_of(logits(lora(case, tmp_path / "out")), logits(case.tuned())) < 1e-5
    if model_type == "gpt2":  # attention has a `c_proj` too
        assert all(name.endswith("mlp.c_proj") for name in config_of(tmp_path / "out")["target_modules"])
        assert config_of(tmp_path / "out")["fan_in_fan_out"]


def test_a_dense_adapter_needs_no_more_rank_than_output_features(tmp_path):
    case = make_case(tmp_path, config={})
    export_adapter(case.adapter, tmp_path / "out", to="lora")
    assert config_of(tmp_path / "out")["r"] == 32
    assert error_of(logits(lora(case, tmp_path / "out")), logits(case.tuned())) < 1e-5


def test_several_strengths_stand_side_by_side_for_choice_by_name(case, tmp_path):
    made = export_adapter(case.adapter, tmp_path / "out", to="lora", strengths=[0.0, 0.5, 1.0])
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "strength-0",
        "strength-0.5",
        "strength-1",
    }
    assert error_of(logits(lora(case, tmp_path / "out" / "strength-0")), logits(case.model())) < 1e-6
    half = logits(lora(case, tmp_path / "out" / "strength-0.5"))
    assert error_of(half, logits(case.tuned(strength=0.5))) < 1e-5
    assert any("strength-0.5=OUT/strength-0.5" in note for note in made.notes)


@pytest.mark.parametrize("to", ["lora", "ia3"])
def test_output_features_export_where_no_bias_is_in_the_way(tmp_path, to):
    case = make_case(tmp_path, config={"neuron_side": "output", "target_modules": ["q_proj", "v_proj"]})
    export_adapter(case.adapter, tmp_path / "out", to=to)
    assert error_of(logits(lora(case, tmp_path / "out")), logits(case.tuned())) < 1e-5


def test_output_features_with_a_bias_are_refused_as_lora_and_exact_as_ia3(tmp_path):
    base_config = {"neuron_side": "output", "target_modules": ["q_proj"]}
    case = make_case(tmp_path, "qwen2", config=base_config)  # q_proj has a bias
    with pytest.raises(ValueError, match=r"has a bias; expected .* --to merged or --to ia3"):
        export_adapter(case.adapter, tmp_path / "out", to="lora")
    assert not (tmp_path / "out").exists()
    export_adapter(case.adapter, tmp_path / "ia3", to="ia3")
    assert error_of(logits(lora(case, tmp_path / "ia3")), logits(case.tuned())) < 1e-5


@pytest.mark.parametrize("to", ["lora", "ia3", "gguf"])
def test_fused_experts_are_refused_with_the_way_out(tmp_path, to):
    settings = {"num_local_experts": 4, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    case = make_case(tmp_path, base=experts_model(settings))
    with pytest.raises(ValueError, match=r"fused experts.*--to merged"):
        export_adapter(case.adapter, tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def experts_model(settings: dict):
    from transformers import AutoModelForCausalLM, MixtralConfig

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=261, num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=2, **settings
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_dynamic_adapter_needs_a_strength_and_says_that_it_became_static(tmp_path):
    tiny_model().save_pretrained(tmp_path / "plain")
    model = dynamic_model()
    model.save_pretrained(tmp_path / "adapter")
    options = {"to": "lora", "model": tmp_path / "plain"}
    with pytest.raises(ValueError, match="dynamic modulation and no strength; expected one"):
        export_adapter(tmp_path / "adapter", tmp_path / "out", **options)
    made = export_adapter(tmp_path / "adapter", tmp_path / "out", strengths=[0.5], **options)
    assert any("decides for each request" in note for note in made.notes)
    assert json.loads((tmp_path / "out" / "neurontune_export.json").read_text())["made_static"]
    model.base_model.set_modulation("static")
    model.set_strength(0.5)
    found = PeftModel.from_pretrained(tiny_model(), tmp_path / "out").eval()
    assert error_of(logits(found), logits(model)) < 1e-5


def test_lower_precision_rounds_the_factors_once_and_says_how_much(case, tmp_path):
    made = export_adapter(case.adapter, tmp_path / "out", to="lora", dtype="bfloat16")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert EXACT < made.checks[0].weight_error < 0.01


def test_the_same_export_is_the_same_bytes_and_names_no_path(case, tmp_path):
    for name in ("one", "two"):
        export_adapter(case.adapter, tmp_path / name, to="lora")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes()


def test_wrong_factors_do_not_pass_the_check(case):
    change = change_at(AdapterFile.load(case.adapter))
    checkpoint = Checkpoint.open(case.base)
    factors = lora_factors(change, checkpoint)
    assert check_factors(factors, change, checkpoint) <= EXACT
    factors["model.layers.0.mlp.down_proj"].b[3, 0] += 0.01
    with pytest.raises(ValueError, match=r"differ by .* from the scaled ones"):
        check_factors(factors, change, checkpoint)


def test_ranks_are_those_that_vllm_accepts():
    assert [vllm_rank(rank) for rank in (1, 2, 8, 17, 257, 321, 512)] == [1, 8, 8, 32, 320, 512, 512]
    assert vllm_rank(513) is None
    assert VLLM_RANKS[-1] == 512
    assert any("--max-lora-rank 64" in line for line in lora_notes(40, ["down_proj"], ["strength-1"], renamed=False))
    assert any("--to merged" in line for line in lora_notes(600, ["down_proj"], ["strength-1"], renamed=False))
    assert any("SGLang knows no LoRA" in line for line in lora_notes(4, ["c_proj"], ["strength-1"], renamed=False))


def test_impossible_wishes_are_refused_before_anything_is_written(case, tmp_path):
    for options, message in (
        ({"counts": {"safety": 99}}, "got safety=99; expected 0 to 6"),
        ({"counts": {"other": 1}}, "expected roles among"),
        ({"strengths": [float("nan")]}, "expected a finite number"),
        ({"strengths": [1.0, 1.0]}, "expected different ones"),
        ({"model": tmp_path / "nowhere"}, "expected a directory or Hub name"),
        ({"base": "x.gguf"}, "correct --base"),
        ({"to": "onnx"}, "expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            export_adapter(case.adapter, tmp_path / "out", **({"to": "lora"} | options))
        assert not list(tmp_path.glob("*out*"))
    assert NeuronTuneConfig.from_pretrained(str(case.adapter)).modulation == "static"
