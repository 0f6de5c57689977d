"""A bit of an adapter's files that has changed since they were saved is noticed when they are loaded."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from adapters import randomize, saved_adapter
from architectures import tiny_model
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from test_dynamic_files import saved as saved_dynamic
from triggers import dynamic_model

from neurontune_peft import AdapterFile, NeuronTuneConfig
from neurontune_peft.cli import main
from neurontune_peft.cli.adapters import write_presets
from neurontune_peft.hub import audit
from neurontune_peft.hub.push import published_files
from neurontune_peft.tuner.arithmetic import compose, prune
from neurontune_peft.tuner.checksum import CHECKED_FIELDS, TENSORS_KEY, check_checksum, with_checksum
from neurontune_peft.tuner.trigger_file import Trigger, export_trigger

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file; negative places count from its end."""
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def reconfigure(adapter: Path, **changes: object) -> None:
    values = json.loads((adapter / CONFIG).read_text()) | changes
    (adapter / CONFIG).write_text(json.dumps(values))


def notes(adapter: Path) -> str:
    return "\n".join(finding.text for finding in audit(adapter).findings)


def without_checksum(adapter: Path) -> None:
    save_file(load_file(adapter / WEIGHTS), adapter / WEIGHTS, metadata={"format": "pt"})


def data_bits(path: Path) -> range:
    """Places of the bits of all tensors."""
    data = path.read_bytes()
    return range(8 * (8 + struct.unpack("<Q", data[:8])[0]), 8 * len(data))


def test_every_changed_bit_of_every_number_is_refused_and_the_model_left_as_it_was(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    model = tiny_model()
    modules = [type(module) for module in model.modules()]
    for place in data_bits(adapter / WEIGHTS):
        flip(adapter / WEIGHTS, place)
        with pytest.raises(ValueError, match=r"got 'adapter_model.safetensors' whose tensors .*; expected .* again"):
            NeuronTuneConfig.from_pretrained(adapter)
        if place % 64 == 0:
            with pytest.raises(ValueError, match="whose tensors have the checksum"):
                PeftModel.from_pretrained(model, adapter)
            with pytest.raises(ValueError, match="whose tensors have the checksum"):
                AdapterFile.load(adapter)
        flip(adapter / WEIGHTS, place)
    assert [type(module) for module in model.modules()] == modules
    assert PeftModel.from_pretrained(model, adapter).get_neurons().total == 10


def test_a_changed_bit_of_the_header_is_refused_or_changes_no_number(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    before = load_file(adapter / WEIGHTS)
    harmless = 0
    for place in range(0, data_bits(adapter / WEIGHTS).start, 7):
        flip(adapter / WEIGHTS, place)
        try:
            AdapterFile.load(adapter)
        except ValueError:
            pass
        else:
            harmless += 1
            found = load_file(adapter / WEIGHTS)
            assert found.keys() == before.keys()
            assert all(torch.equal(found[name], before[name]) for name in before)
        flip(adapter / WEIGHTS, place)
    assert 0 < harmless < 80  # names of metadata, and spaces behind the header


def test_a_file_that_was_saved_without_a_checksum_is_loaded_and_told_from_others(tmp_path, capsys):
    adapter, _ = saved_adapter(tmp_path)
    assert main(["inspect", str(adapter)]) == 0
    assert f"checksum     right (tensors {check_checksum(adapter / WEIGHTS):.12})" in capsys.readouterr().out
    assert "no checksum" not in notes(adapter)
    without_checksum(adapter)
    assert check_checksum(adapter / WEIGHTS) is None
    assert PeftModel.from_pretrained(tiny_model(), adapter).get_neurons().total == 10
    assert main(["inspect", str(adapter)]) == 0
    assert "checksum     none in the file" in capsys.readouterr().out
    assert "no checksum, so a bit that has changed since saving is not noticed" in notes(adapter)


def test_saving_over_an_adapter_leaves_the_checksum_of_the_new_numbers(tmp_path):
    adapter, model = saved_adapter(tmp_path)
    first = check_checksum(adapter / WEIGHTS)
    randomize(model, seed=9)
    model.save_pretrained(adapter)
    assert check_checksum(adapter / WEIGHTS) not in (None, first)
    assert AdapterFile.load(adapter).checksum == check_checksum(adapter / WEIGHTS)


def test_compose_prune_publish_and_export_write_right_checksums(tmp_path):
    adapter, _ = saved_dynamic(tmp_path / "adapter")
    file = AdapterFile.load(adapter)
    pruned = prune(file, {"safety": 2, "utility": 1}, drop_trigger=True)
    for name, made in (("pruned", pruned), ("sum", compose([pruned, pruned], [1.0, 0.5]))):
        made.save(tmp_path / name)
        assert AdapterFile.load(tmp_path / name).checksum is not None
        assert "checksum" in json.loads((tmp_path / name / CONFIG).read_text())
    assert file.to_bytes() == (adapter / WEIGHTS).read_bytes()
    (tmp_path / "published").mkdir()
    for name, content in published_files(adapter, "alice/x", base_model="a/b").items():
        (tmp_path / "published" / name).write_bytes(content)
    assert AdapterFile.load(tmp_path / "published").checksum == file.checksum
    assert "checksum" in json.loads((tmp_path / "published" / CONFIG).read_text())
    export_trigger(adapter, tmp_path / "trigger")
    assert check_checksum(tmp_path / "trigger" / "trigger.safetensors") is not None


@pytest.mark.parametrize(
    "field", ["trigger_threshold", "trigger_bias", "strength_on", "strength_off", "trigger_suffix", "presets"]
)
def test_a_changed_setting_or_preset_is_refused_on_every_route(tmp_path, field):
    adapter, _ = saved_dynamic(tmp_path)
    write_presets(str(adapter), {"security": {"strength": 1.5}})
    changed = {"trigger_suffix": [1, 2], "presets": {"security": {"strength": 1.0}}}.get(field, 0.25)
    reconfigure(adapter, **{field: changed})
    for route in (
        lambda: PeftModel.from_pretrained(tiny_model(), adapter),
        lambda: tiny_model().load_adapter(str(adapter)),
        lambda: AutoPeftModelForCausalLM.from_pretrained(adapter),
        lambda: AdapterFile.load(adapter),
    ):
        with pytest.raises(
            ValueError, match=r"got 'adapter_config.json' whose settings .*; expected .*remove 'checksum'"
        ):
            route()
    values = json.loads((adapter / CONFIG).read_text())
    del values["checksum"]
    (adapter / CONFIG).write_text(json.dumps(values))
    assert AdapterFile.load(adapter).neurons.total == 10


def test_names_and_notes_in_a_configuration_may_be_corrected_by_hand(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    reconfigure(adapter, base_model_name_or_path="user/model", revision="main", provenance={"note": "by hand"})
    assert AdapterFile.load(adapter).config.base_model_name_or_path == "user/model"


def test_presets_that_are_written_later_keep_the_checksum_of_the_tensors(tmp_path):
    adapter, _ = saved_adapter(tmp_path)
    before = (adapter / WEIGHTS).read_bytes()
    write_presets(str(adapter), {"mild": {"strength": 0.5, "counts": {"safety": 2}}})
    assert (adapter / WEIGHTS).read_bytes() == before
    assert list(PeftModel.from_pretrained(tiny_model(), adapter).presets) == ["mild"]


def test_fields_of_a_loaded_configuration_may_be_changed_and_saved_again(tmp_path):
    model = dynamic_model()
    model.save_pretrained(tmp_path / "a")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "a")
    loaded.peft_config["default"].trigger_threshold += 1.0
    loaded.save_pretrained(tmp_path / "b")
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "b")
    assert again.peft_config["default"].trigger_threshold == loaded.peft_config["default"].trigger_threshold


def test_a_changed_trigger_file_is_refused(tmp_path):
    adapter, _ = saved_dynamic(tmp_path / "adapter")
    export_trigger(adapter, tmp_path / "trigger")
    assert Trigger.load(tmp_path / "trigger").numbers == Trigger.of_file(adapter).numbers
    flip(tmp_path / "trigger" / "trigger.safetensors", data_bits(tmp_path / "trigger" / "trigger.safetensors")[-1])
    with pytest.raises(ValueError, match="whose tensors have the checksum"):
        Trigger.load(tmp_path / "trigger")
    export_trigger(adapter, tmp_path / "trigger")
    path = tmp_path / "trigger" / "trigger.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trigger_threshold": 0.125}))
    with pytest.raises(ValueError, match=r"got 'trigger.json' whose settings have the checksum"):
        Trigger.load(tmp_path / "trigger")


def test_a_file_in_the_cache_of_the_hub_is_checked_under_its_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    commit = "0" * 40
    repository = tmp_path / "models--alice--adapter"
    adapter, _ = saved_adapter(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    options = {"cache_dir": str(tmp_path), "local_files_only": True}
    assert NeuronTuneConfig.from_pretrained("alice/adapter", **options).neuron_counts
    flip(adapter / WEIGHTS, data_bits(adapter / WEIGHTS)[100])
    with pytest.raises(ValueError, match="whose tensors have the checksum"):
        NeuronTuneConfig.from_pretrained("alice/adapter", **options)
    with pytest.raises(ValueError, match="whose tensors have the checksum"):
        PeftModel.from_pretrained(tiny_model(), "alice/adapter", **options)


def test_a_checksum_leaves_the_tensors_where_torch_can_map_them():
    for size in range(1, 20):
        data = with_checksum(save({"a" * size: torch.arange(float(size))}, metadata={"format": "pt"}))
        assert struct.unpack("<Q", data[:8])[0] % 8 == 0
        assert torch.equal(load(data)["a" * size], torch.arange(float(size)))
        assert with_checksum(data) == data


def test_the_checksum_depends_on_names_dtypes_and_shapes_too(tmp_path):
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 2.0])}
    variants = [
        tensors,
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"], "b": tensors["b"].view(torch.int32)},
        {"a": tensors["a"], "b": tensors["b"].view(2, 1)},
    ]
    found = set()
    for number, variant in enumerate(variants):
        path = tmp_path / str(number)
        path.write_bytes(with_checksum(save(variant)))
        found.add(check_checksum(path))
        with safe_open(path, "pt") as file:
            assert file.metadata() == {TENSORS_KEY: check_checksum(path)}
    assert len(found) == len(variants)


def test_each_setting_that_decides_what_an_adapter_does_is_under_the_checksum():
    free = {"neurons", "modules_to_save", "init_weights", "strict", "provenance", "format_version", "checksum"}
    own = set(NeuronTuneConfig.__annotations__)
    assert own - free == set(CHECKED_FIELDS)


def test_random_bits_of_both_files_are_caught_or_harmless(tmp_path):
    adapter, _ = saved_dynamic(tmp_path)
    whole = AdapterFile.load(adapter)
    drawn = random.Random(0)
    for name in (WEIGHTS, CONFIG):
        for _ in range(150):
            place = drawn.randrange(8 * (adapter / name).stat().st_size)
            flip(adapter / name, place)
            try:
                found = AdapterFile.load(adapter)
            except (ValueError, KeyError, TypeError):
                found = whole
            except Warning:  # of a field that nobody knows
                found = whole
            flip(adapter / name, place)
            assert found.to_bytes() == whole.to_bytes()
            assert all(getattr(found.config, field) == getattr(whole.config, field) for field in CHECKED_FIELDS)
