"""Merged checkpoints: the bits of `merge_and_unload`, one shard at a time."""

import json
import os

import pytest
import torch
from exports import logits, make_case, state
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from test_experts import moe_model

from neurontune_peft import NeuronTuneConfig, find_sites
from neurontune_peft.export import export_adapter
from neurontune_peft.export.change import change_at
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.merged import planned_edits
from neurontune_peft.export.streaming import Edit, edited
from neurontune_peft.tuner.files import AdapterFile


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_merged_weights_are_those_of_merge_and_unload_bit_for_bit(tmp_path, model_type, dtype):
    case = make_case(tmp_path, model_type, dtype=dtype)
    made = export_adapter(case.adapter, tmp_path / "out", to="merged", strengths=[0.7], counts={"safety": 5})
    assert made.checks[0].logits.largest == 0
    wanted = case.tuned(strength=0.7, safety=5).merge_and_unload()
    assert same(state(tmp_path / "out"), wanted.state_dict())
    assert not same(state(tmp_path / "out"), state(case.base))
    assert next(iter(state(tmp_path / "out").values())).dtype == dtype


def test_output_features_merge_with_their_bias(tmp_path):
    case = make_case(tmp_path, "opt", config={"neuron_side": "output", "target_modules": ["fc2"]})
    export_adapter(case.adapter, tmp_path / "out", to="merged")
    assert same(state(tmp_path / "out"), case.tuned().merge_and_unload().state_dict())


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_merge_as_the_checkpoint_stores_them(tmp_path, model_type):
    case = make_case(tmp_path, base=moe_model(model_type))
    keys = load_file(case.base / "model.safetensors")
    export_adapter(case.adapter, tmp_path / "out", to="merged")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert keys.keys() == merged.keys()
    assert same(state(tmp_path / "out"), case.tuned().merge_and_unload().state_dict())
    changed = [key for key in keys if not torch.equal(keys[key], merged[key])]
    assert changed
    assert all("experts" in key for key in changed)


def test_untouched_shards_are_links_and_all_else_goes_along(tmp_path):
    case = make_case(tmp_path, shard="40KB")
    (case.base / "README.md").write_text("a card")
    (case.base / "modeling.py").write_text("raise SystemExit")
    (case.base / "LICENSE").write_text("terms")
    (case.base / "pytorch_model.bin").write_bytes(b"x")
    export_adapter(case.adapter, tmp_path / "out", to="merged")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"} <= names
    assert {"generation_config.json", "neurontune_export.json", "model.safetensors.index.json"} <= names
    assert not {"README.md", "modeling.py", "pytorch_model.bin", "plan.json"} & names
    for name in ("config.json", "model.safetensors.index.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (case.base / name).read_bytes(), name
    edits = planned_edits(change_at(AdapterFile.load(case.adapter)), Checkpoint.open(case.base))
    shards = sorted(case.base.glob("*.safetensors"))
    assert 0 < len(edits) < len(shards)
    for path in shards:
        assert path.samefile(tmp_path / "out" / path.name) == (path.name not in edits)
        assert path.stat().st_size == (tmp_path / "out" / path.name).stat().st_size
    assert same(state(tmp_path / "out"), case.tuned().merge_and_unload().state_dict())


def test_without_hard_links_shards_are_copied_byte_for_byte(tmp_path, monkeypatch):
    case = make_case(tmp_path, shard="40KB")

    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    export_adapter(case.adapter, tmp_path / "out", to="merged", check="weights")
    for path in case.base.glob("*.safetensors"):
        copy = tmp_path / "out" / path.name
        assert not path.samefile(copy)
        assert path.stat().st_size == copy.stat().st_size
    assert same(state(tmp_path / "out"), case.tuned().merge_and_unload().state_dict())


def test_the_size_of_chunks_does_not_show(tmp_path, monkeypatch):
    case = make_case(tmp_path, dtype=torch.bfloat16)
    export_adapter(case.adapter, tmp_path / "large", to="merged", check="weights")
    monkeypatch.setattr("neurontune_peft.export.streaming.CHUNK", 100)
    export_adapter(case.adapter, tmp_path / "small", to="merged", check="weights")
    small, large = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "large"))
    assert small == large != (case.base / "model.safetensors").read_bytes()


def test_edits_leave_every_other_byte_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(64)))
    edit = Edit(8, 3, 4, torch.float32, 1, torch.tensor([2]), torch.tensor([0.5]))
    data = b"".join(edited(path, [edit]))
    changed = {i for i, (a, b) in enumerate(zip(data, path.read_bytes(), strict=True)) if a != b}
    assert changed <= {8 + row * 16 + 8 + byte for row in range(3) for byte in range(4)}
    assert changed


def test_strength_zero_is_the_base_model_byte_for_byte(tmp_path):
    case = make_case(tmp_path)
    export_adapter(case.adapter, tmp_path / "out", to="merged", strengths=[0.0])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (case.base / "model.safetensors").read_bytes()


def test_a_quantised_weight_is_refused_and_nothing_written(tmp_path):
    case = make_case(tmp_path)
    tensors = load_file(case.base / "model.safetensors")
    key = "model.layers.1.mlp.down_proj.weight"
    tensors[key] = tensors[key].to(torch.int8)
    save_file(tensors, case.base / "model.safetensors", metadata={"format": "pt"})
    for to in ("merged", "lora"):
        with pytest.raises(ValueError, match="stored as I8; expected floating-point weights"):
            export_adapter(case.adapter, tmp_path / "out", to=to)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "model.bin", 7])
def test_names_of_an_index_cannot_lead_elsewhere(tmp_path, name):
    case = make_case(tmp_path)
    index = {"weight_map": dict.fromkeys(load_file(case.base / "model.safetensors"), name)}
    (case.base / "model.safetensors.index.json").write_text(json.dumps(index))
    (case.base / "model.safetensors").rename(tmp_path / "secret.safetensors")
    with pytest.raises(ValueError, match="expected the bare name of a safetensors file"):
        export_adapter(case.adapter, tmp_path / "out", to="merged")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("damage", ["cut", "index", "missing", "pickle"])
def test_damaged_or_foreign_weights_are_refused(tmp_path, damage):
    case = make_case(tmp_path)
    path = case.base / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "index":
        path.rename(case.base / "model-1.safetensors")
        (case.base / "model.safetensors.index.json").write_text("{")
    elif damage == "missing":
        index = {"weight_map": dict.fromkeys(load_file(path), "model-2.safetensors")}
        path.rename(case.base / "model-1.safetensors")
        (case.base / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        path.rename(case.base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected (whole|all shards|weights in safetensors)"):
        export_adapter(case.adapter, tmp_path / "out", to="merged")
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_with_whole_modules_is_refused(tmp_path):
    base = make_case(tmp_path).model()
    config = NeuronTuneConfig(
        task_type="CAUSAL_LM", modules_to_save=["lm_head"], target_modules=list(find_sites(base))
    )
    get_peft_model(base, config).save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"modules_to_save=.*; expected scales alone"):
        export_adapter(tmp_path / "whole", tmp_path / "out", to="merged", model=tmp_path / "base")


def test_the_merged_model_answers_through_plain_transformers(tmp_path):
    case = make_case(tmp_path)
    export_adapter(case.adapter, tmp_path / "out", to="merged", strengths=[1.0, 2.0])
    for strength in (1, 2):
        merged = type(case.model()).from_pretrained(tmp_path / "out" / f"strength-{strength}").eval()
        wanted = case.tuned(strength=float(strength)).merge_and_unload()
        assert torch.equal(logits(merged), logits(wanted))
