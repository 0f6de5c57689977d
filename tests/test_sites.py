"""Which modules are sites: against the traced truth of 124 types, on further types, and however a model is wrapped."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, LAYERS, tiny_model, tokens
from peft import IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    BertConfig,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from neurontune_peft.neurons import Site
from neurontune_peft.sites import find_sites, sites_from_config
from neurontune_peft.sites.modules import hidden_sizes, projections
from neurontune_peft.sites.structure import find_by_structure
from neurontune_peft.sites.table import TABLE

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = json.loads((ROOT / "tests" / "data" / "causal_lm_sites.json").read_text())["types"]

# Causal LM types that the file does not have: endings of the sites' paths, and how many sites a default config has.
FURTHER = {
    "afmoe": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 63),
    "bailing_hybrid": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 82),
    "beam": ({"mlp.down_proj", "mlp.experts"}, 52),
    "bert": ({"output.dense"}, 12),
    "bert-generation": ({"output.dense"}, 24),
    "big_bird": ({"output.dense"}, 12),
    "blenderbot": ({"*.fc2"}, 24),
    "blt": ({"mlp.down_proj"}, 35),
    "cohere2_moe": ({"mlp.experts"}, 40),
    "ctrl": ({"ffn.*"}, 48),
    "cwm": ({"mlp.down_proj"}, 64),
    "data2vec-text": ({"output.dense"}, 12),
    "deepseek_v32": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 119),
    "deepseek_v4": ({"mlp.experts", "shared_experts.down_proj"}, 86),
    "doge": ({"mlp.down_proj"}, 32),
    "dots3_note": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 91),
    "dots3_note_text": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 91),
    "emu3": ({"mlp.down_proj"}, 32),
    "ernie4_5_moe": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 55),
    "gemma3n_text": ({"mlp.down_proj", "*.per_layer_projection"}, 70),
    "gemma4": ({"mlp.down_proj", "*.per_layer_projection"}, 60),
    "gemma4_text": ({"mlp.down_proj", "*.per_layer_projection"}, 60),
    "gemma4_unified": ({"mlp.down_proj"}, 30),
    "gemma4_unified_text": ({"mlp.down_proj"}, 30),
    "git": ({"output.dense"}, 6),
    "glm4": ({"mlp.down_proj"}, 40),
    "glm4_moe_lite": ({"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}, 93),
    "granite_swa": ({"mlp.down_proj"}, 24),
    "granitemoe_swa": ({"block_sparse_moe.experts"}, 32),
    "inkling2_text": ({"mlp.experts"}, 48),
    "inkling_text": ({"mlp.experts", "mlp.shared_experts"}, 132),
    "jamba": ({"feed_forward.down_proj", "feed_forward.experts"}, 32),
    "jetmoe": ({"mlp.output_linear"}, 12),
    "kolibri1": ({"mlp.experts", "shared_experts.down_proj"}, 100),
    "llama4": ({"feed_forward.experts", "shared_expert.down_proj"}, 96),
    "llama4_text": ({"feed_forward.experts", "shared_expert.down_proj"}, 96),
    "megatron-bert": ({"output.dense"}, 24),
    "minimax_m2": ({"mlp.experts"}, 62),
    "minimax_m3_vl_text": ({"mlp.experts", "shared_experts.down_proj"}, 120),
    "moss_transcribe_diarize": ({"mlp.down_proj"}, 28),
    "nanochat": ({"mlp.fc2"}, 12),
    "pegasus": ({"*.fc2"}, 12),
    "persimmon": ({"mlp.dense_4h_to_h"}, 36),
    "qwen3_5": ({"mlp.down_proj"}, 32),
    "qwen3_5_moe": ({"mlp.experts", "shared_expert.down_proj"}, 80),
    "qwen3_5_text": ({"mlp.down_proj"}, 32),
    "qwen3_next": ({"mlp.experts", "shared_expert.down_proj"}, 96),
    "qwen4_exp": ({"mlp.experts", "shared_expert.down_proj"}, 80),
    "qwen4_exp_text": ({"mlp.experts", "shared_expert.down_proj"}, 80),
    "reformer": ({"output.dense"}, 6),
    "roberta": ({"output.dense"}, 12),
    "roberta-prelayernorm": ({"output.dense"}, 12),
    "trocr": ({"*.fc2"}, 12),
    "youtu": ({"mlp.down_proj"}, 32),
    "zamba2": ({"feed_forward.down_proj"}, 9),
    "zaya": ({"mlp.experts"}, 40),
}


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_sites_table", ROOT / "benchmarks" / "build_sites_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model on the meta device; built once for the tests that share a parameter."""
    return SCRIPT.build(request.param)


def _ending(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split(".")[-2:])


def _true_endings(model_type: str) -> set[str]:
    return {_ending(name) for name in EXPECTED[model_type]["mlp_output_projections"]}


def _alone(model: PreTrainedModel) -> dict[str, Site]:
    found = find_by_structure(projections(model), hidden_sizes(model))
    return {p.name: Site(p.name, p.width, p.kind, "structure") for p in found}


def _check_against_the_file(model: PreTrainedModel, sites: dict[str, Site], model_type: str) -> None:
    linear = {name for name, site in sites.items() if site.kind == "linear"}
    experts = {type(model.get_submodule(name)).__name__ for name in sites.keys() - linear}
    assert {_ending(name) for name in linear} == _true_endings(model_type)
    assert experts == {fused["cls"] for fused in EXPECTED[model_type]["fused_experts"]}
    if model_type not in SCRIPT.COMPLETIONS:
        assert {sites[name].width for name in linear} == {width for width, _ in EXPECTED[model_type]["in_out"]}


@pytest.mark.parametrize("model", EXPECTED, indirect=True)
def test_the_table_alone_names_exactly_the_true_sites(model: PreTrainedModel, request: pytest.FixtureRequest) -> None:
    sites = find_sites(model)
    _check_against_the_file(model, sites, request.node.callspec.params["model"])
    assert {site.rule for site in sites.values()} == {"table"}


@pytest.mark.parametrize("model", EXPECTED, indirect=True)
def test_the_structural_rule_alone_names_exactly_the_true_sites_of_every_type(
    model: PreTrainedModel, request: pytest.FixtureRequest
) -> None:
    _check_against_the_file(model, _alone(model), request.node.callspec.params["model"])


def test_the_file_has_124_types_and_the_table_all_of_them() -> None:
    assert len(EXPECTED) == 124
    assert EXPECTED.keys() <= TABLE.keys()


@pytest.mark.parametrize("model", FURTHER, indirect=True)
def test_both_ways_carry_over_to_types_that_are_not_in_the_file(
    model: PreTrainedModel, request: pytest.FixtureRequest
) -> None:
    endings, count = FURTHER[request.node.callspec.params["model"]]
    for sites in (find_sites(model), _alone(model)):
        assert {_ending(name) for name in sites} == endings
        assert len(sites) == count
        assert not any("vision" in name or "audio" in name or "image" in name or "patcher" in name for name in sites)


@pytest.mark.parametrize(
    "model_type", ["axk2", "gemma3n_text", "llama4_text", "nemotron_h", "qwen3_next", "rwkv", "xlm"]
)
def test_what_consumes_an_activation_in_a_forward_pass_is_what_the_rule_finds_by_shape(model_type: str) -> None:
    model = SCRIPT.build(model_type)
    expected = set(_alone(model))
    assert SCRIPT.trace(model) == expected


@pytest.mark.parametrize("model_type", ["camembert", "opt", "xmod", "ctrl"])
def test_the_endings_of_the_table_tell_sites_from_attention(model_type: str) -> None:
    model = SCRIPT.build(model_type)
    assert tuple(SCRIPT.endings(model, find_sites(model))) == TABLE[model_type]


@pytest.mark.parametrize(
    ("model_type", "settings", "endings"),
    [
        ("deepseek_v2", {"first_k_dense_replace": 1}, {"mlp.down_proj", "mlp.experts", "shared_experts.down_proj"}),
        ("qwen3_moe", {"mlp_only_layers": [0]}, {"mlp.down_proj", "mlp.experts"}),
        ("granitemoeshared", {"shared_intermediate_size": 64},
         {"block_sparse_moe.experts", "shared_mlp.output_linear"}),
        ("llama4_text", {"interleave_moe_layer_step": 2},
         {"feed_forward.experts", "feed_forward.down_proj", "shared_expert.down_proj"}),
        ("nemotron_h", {"moe_latent_size": 64}, {"mixer.experts", "mixer.down_proj", "shared_experts.down_proj"}),
        ("gemma4_text",
         {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
         {"mlp.down_proj", "*.per_layer_projection", "*.experts"}),
        ("opt", {"hidden_size": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32}, {"*.fc2"}),
        ("falcon", {"new_decoder_architecture": True}, {"mlp.dense_4h_to_h"}),
    ],
)  # fmt: skip
def test_modules_that_a_setting_brings_in_are_found(
    model_type: str, settings: dict[str, Any], endings: set[str]
) -> None:
    assert {_ending(name) for name in find_sites(SCRIPT.build(model_type, **settings))} == endings


@pytest.mark.parametrize("intermediate", [16, 32, 64, 128])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "phi3", "gemma2", "mixtral", "gpt_oss"])
def test_an_intermediate_size_as_small_as_the_hidden_size_does_not_confuse_the_rule(
    model_type: str, intermediate: int
) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = SCRIPT.build(model_type, **sizes, intermediate_size=intermediate, num_hidden_layers=2, pad_token_id=None)
    experts = getattr(model.config, "num_local_experts", 1)
    ending = "mlp.experts" if experts > 1 else "mlp.down_proj"
    assert {name: site.width for name, site in _alone(model).items()} == {
        f"model.layers.{layer}.{ending}": experts * intermediate for layer in range(2)
    }


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_sites_of_a_real_model_take_as_many_features_as_they_are_wide(model_type: str) -> None:
    model = tiny_model(model_type)
    sites = find_sites(model)
    seen = {}
    for name in sites:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].shape[-1])
        )
    model(input_ids=tokens())
    assert len(sites) == LAYERS
    assert seen == {name: site.width for name, site in sites.items()}
    assert list(sites) == list(_alone(model))


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba"])
def test_a_model_without_an_mlp_raises_an_error_that_names_target_modules(model_type: str) -> None:
    with pytest.raises(ValueError, match=rf"got .*{model_type}.*no MLP.*; expected .*; name .*`target_modules`"):
        find_sites(SCRIPT.build(model_type))


def test_experts_of_unknown_layout_raise_an_error_that_names_their_class() -> None:
    class OddExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.everything = nn.Parameter(torch.zeros(4, 96, 32))

    model = tiny_model()
    model.model.layers[1].mlp = OddExperts()
    with pytest.raises(ValueError, match=r"experts of unknown layout \(OddExperts\).*`target_modules`"):
        find_sites(model)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"]),
        LoraConfig(target_modules=["down_proj"], use_dora=True),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["lora", "dora", "ia3"],
)
def test_adapters_of_peft_do_not_change_the_sites(config: LoraConfig | IA3Config) -> None:
    expected = list(find_sites(tiny_model()).items())
    assert list(find_sites(get_peft_model(tiny_model(), config)).items()) == expected
    assert list(find_sites(inject_adapter_in_model(config, tiny_model())).items()) == expected


def test_adapters_on_the_weights_of_experts_do_not_change_the_sites() -> None:
    settings = {"hidden_size": 32, "intermediate_size": 24, "num_local_experts": 4, "num_hidden_layers": 2}
    config = MixtralConfig(**settings, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)

    expected = find_sites(MixtralForCausalLM(config))
    lora = LoraConfig(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert {site.width for site in expected.values()} == {4 * 24}
    assert find_sites(get_peft_model(MixtralForCausalLM(config), lora)) == expected


@pytest.mark.parametrize(
    ("model_type", "prefix", "ending"),
    [
        ("llava", "model.language_model.layers.", "mlp.down_proj"),
        ("qwen2_5_vl", "model.language_model.layers.", "mlp.down_proj"),
        ("qwen3_vl_moe", "model.language_model.layers.", "mlp.experts"),
        ("idefics3", "model.text_model.layers.", "mlp.down_proj"),
        ("gemma3", "model.language_model.layers.", "mlp.down_proj"),
        ("blip-2", "language_model.model.decoder.layers.", "*.fc2"),
        ("muse_spark", "model.language_model.layers.", "mlp.experts"),
        ("florence2", "model.language_model.decoder.layers.", "*.fc2"),
    ],
)
def test_only_the_language_model_of_a_vision_language_model_is_searched(
    model_type: str, prefix: str, ending: str
) -> None:
    with torch.device("meta"):
        sites = find_sites(AutoModelForImageTextToText.from_config(CONFIG_MAPPING[model_type]()))
    assert all(name.startswith(prefix) for name in sites)
    assert {_ending(name) for name in sites} == {ending}


@pytest.mark.parametrize(
    ("model_type", "prefix"),
    [("t5", "decoder.block."), ("bart", "model.decoder.layers."), ("switch_transformers", "decoder.block.")],
)
def test_only_the_decoder_of_an_encoder_decoder_is_searched(model_type: str, prefix: str) -> None:
    with torch.device("meta"):
        sites = find_sites(AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[model_type]()))
    assert sites
    assert all(name.startswith(prefix) for name in sites)


def test_an_encoder_decoder_that_hides_its_decoder_raises_an_error_that_says_so() -> None:
    model = _Own()
    model.config = CONFIG_MAPPING["t5"]()
    with pytest.raises(ValueError, match=r"got the encoder-decoder _Own; expected .*`target_modules`"):
        find_sites(model)


class _Quantised(nn.Module):
    """A linear map of a quantisation library: no `nn.Linear`, packed weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = nn.Parameter(torch.zeros(linear.weight.numel() // 2, dtype=torch.uint8), requires_grad=False)


def test_linear_classes_of_quantisation_libraries_are_found_by_their_features() -> None:
    model = tiny_model()
    expected = find_sites(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            model.set_submodule(name, _Quantised(module))
    assert find_sites(model) == expected
    assert list(_alone(model)) == list(expected)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"wqkv": nn.Linear(width, 3 * width), "wo": nn.Linear(width, width)})
        self.router = nn.Sequential(nn.Linear(width, 2 * width), nn.Linear(2 * width, width))
        self.expand, self.contract = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)


class _Own(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width) for _ in range(2))
        self.mtp = nn.ModuleList([_Block(width)])
        self.vision_blocks = nn.ModuleList([_Block(width)])
        self.connector = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))])
        self.lm_head = nn.Linear(width, 32)


def test_a_users_own_architecture_is_found_by_structure_without_heads_routers_and_towers() -> None:
    assert find_sites(_Own()) == {
        name: Site(name, 24, "linear", "structure") for name in ("blocks.0.contract", "blocks.1.contract")
    }


def test_sites_follow_the_order_of_the_model() -> None:
    model = SCRIPT.build("deepseek_v3")
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    indices = [order[name] for name in find_sites(model)]
    assert indices == sorted(indices)


def test_sites_of_400_billion_parameters_come_from_the_config_alone(tmp_path: Path) -> None:
    LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128
    ).save_pretrained(tmp_path)
    sites = sites_from_config(tmp_path)
    assert list(sites) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(126)]
    assert set(sites.values()) == {Site(name, 53248, "linear", "table") for name in sites}


def test_a_vision_language_config_gives_the_sites_of_its_language_model() -> None:
    sites = sites_from_config(CONFIG_MAPPING["llava"]())
    assert list(sites) == [f"model.language_model.layers.{layer}.mlp.down_proj" for layer in range(32)]


def test_a_config_that_is_no_causal_lm_raises_an_error_that_names_its_type() -> None:
    with pytest.raises(ValueError, match=r"got a config of model type 'vit'; expected .*; build "):
        sites_from_config(CONFIG_MAPPING["vit"]())


def test_finding_sites_changes_neither_the_config_nor_the_model() -> None:
    config = BertConfig(num_hidden_layers=2)
    before = config.to_dict()
    sites_from_config(config)
    assert config.to_dict() == before
