"""The fingerprint of a base model is the same for its files as for the model, and is cheap to take."""

import json

import pytest
import torch
from adapters import saved_adapter, some_neurons
from architectures import tiny_model
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.cli import main
from neurontune_peft.tuner import base_files
from neurontune_peft.tuner.base_files import checkpoint_fingerprint

MIXTRAL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "vocab_size": 64,
}


def mixtral() -> PreTrainedModel:
    from transformers import AutoConfig

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **MIXTRAL))


def config_of(model: PreTrainedModel, **options: object) -> NeuronTuneConfig:
    options = {"neurons": some_neurons(model)} | options
    return get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", **options)).peft_config["default"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "opt", "phi3", "mixtral"])
def test_files_have_the_fingerprint_of_the_loaded_model(tmp_path, model_type):
    model = mixtral() if model_type == "mixtral" else tiny_model(model_type)
    model.save_pretrained(tmp_path)
    config = config_of(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert checkpoint_fingerprint(tmp_path, config) == config.base_model_fingerprint


def test_shards_and_targets_by_suffix_make_no_difference(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    config = config_of(tiny_model(), target_modules=["down_proj"], neurons=None)
    assert checkpoint_fingerprint(tmp_path, config) == config.base_model_fingerprint


def test_files_of_a_model_without_its_head_are_recognised(tmp_path):
    model = tiny_model()
    save_file(
        {k.removeprefix("model."): v.contiguous() for k, v in model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    config = config_of(model)
    assert checkpoint_fingerprint(tmp_path, config) == config.base_model_fingerprint


def test_one_changed_weight_is_noticed_where_blocks_are_sampled(tmp_path):
    model = tiny_model()
    config = config_of(tiny_model())
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert checkpoint_fingerprint(tmp_path, config) != config.base_model_fingerprint


def test_only_sampled_blocks_are_read(tmp_path, monkeypatch):
    tiny_model(hidden_size=256, intermediate_size=1024).save_pretrained(tmp_path)
    read = []
    original = base_files.Stored.read

    def counted(self, start, stop):
        read.append(stop - start)
        return original(self, start, stop)

    monkeypatch.setattr(base_files.Stored, "read", counted)
    config = config_of(tiny_model(hidden_size=256, intermediate_size=1024))
    assert checkpoint_fingerprint(tmp_path, config) == config.base_model_fingerprint
    assert sum(read) == 2 * 16 * 256  # two sites, of 262,144 values each


def test_quantised_files_have_no_fingerprint(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    assert checkpoint_fingerprint(tmp_path, config_of(tiny_model())) is None


def test_other_models_and_other_directories_are_named(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    (tmp_path / "empty").mkdir()
    config = config_of(tiny_model())
    with pytest.raises(ValueError, match=r"without the weight of 'model.layers.0.mlp.down_proj'"):
        checkpoint_fingerprint(tmp_path / "gpt2", config)
    with pytest.raises(ValueError, match="no safetensors file"):
        checkpoint_fingerprint(tmp_path / "empty", config)


def test_an_index_cannot_lead_out_of_its_directory(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "other").mkdir()
    index = {"weight_map": {"a": "../model/model.safetensors"}}
    (tmp_path / "other" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"expected model.safetensors"):
        checkpoint_fingerprint(tmp_path / "other", config_of(tiny_model()))


def test_inspect_says_whether_a_directory_holds_the_base_model(tmp_path, capsys):
    saved_adapter(tmp_path / "adapter")
    for seed, code in ((0, 0), (1, 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / "base")
        try:
            found = main(["inspect", str(tmp_path / "adapter"), "--base", str(tmp_path / "base")])
        except SystemExit as stop:
            found = stop.code
        assert found == code
        assert ("ANOTHER model" in capsys.readouterr().out) == (code == 1)
