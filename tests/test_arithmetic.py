"""Adapters are composed, cut and compared as files, and the results act as the model's own methods do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters import randomize, saved_adapter, some_neurons
from architectures import tiny_model, tokens
from peft import PeftModel, get_peft_model
from triggers import dynamic_model, requests

from neurontune_peft import AdapterFile, Neurons, NeuronTuneConfig
from neurontune_peft.cli import main
from neurontune_peft.cli.common import written_whole
from neurontune_peft.tuner.arithmetic import READ_ONLY_ROLE, compose, differences, prune


def other_adapter(directory: Path) -> Path:
    """An adapter of the same base model with one neuron in common, in another role, and some of its own."""
    base = tiny_model()
    widths = some_neurons(base).widths
    site = next(iter(widths))
    neurons = Neurons.from_ranked({"safety": [(site, 1), (site, 3)]}, widths={site: widths[site]})
    model = get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    randomize(model, seed=7)
    model.save_pretrained(directory)
    return directory


def dynamic_adapter(directory: Path) -> Path:
    """An adapter with a trigger that reads all of its neurons."""
    dynamic_model().save_pretrained(directory)
    return directory


def loaded(directory: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_model(), directory).eval()


def test_a_saved_file_has_the_bytes_that_peft_writes(tmp_path):
    for make in (saved_adapter, dynamic_adapter, other_adapter):
        directory = tmp_path / make.__name__
        make(directory)
        AdapterFile.load(directory).save(tmp_path / "copy")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "copy" / name).read_bytes() == (directory / name).read_bytes(), name


def test_composed_files_give_the_logits_of_add_weighted_adapter(tmp_path):
    saved_adapter(tmp_path / "a")
    other_adapter(tmp_path / "b")
    assert (
        main(
            ["compose", *(str(tmp_path / n) for n in "ab"), "--weights", "0.5", "-2", "--output", str(tmp_path / "c")]
        )
        == 0
    )
    model = loaded(tmp_path / "a")
    model.load_adapter(str(tmp_path / "b"), "b")
    model.add_weighted_adapter(["default", "b"], [0.5, -2.0], "sum")
    model.set_adapter("sum")
    found = loaded(tmp_path / "c")
    assert torch.equal(found(tokens()).logits, model(tokens()).logits)
    assert found.base_model.get_neurons().to_json() == model.base_model.get_neurons("sum").to_json()


def test_a_composed_adapter_says_of_what_and_holds_no_path(tmp_path):
    saved_adapter(tmp_path / "a")
    file = AdapterFile.load(tmp_path / "a")
    made = compose([file, file], [1.0, 1.0])
    assert [part["weight"] for part in made.config.provenance["composed"]] == [1.0, 1.0]
    assert made.config.base_model_fingerprint == file.config.base_model_fingerprint
    made.save(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "b" / "adapter_config.json").read_text()


def test_adapters_that_do_not_fit_are_not_composed(tmp_path):
    saved_adapter(tmp_path / "a")
    first = AdapterFile.load(tmp_path / "a")
    saved_adapter(tmp_path / "b", base=tiny_model(seed=1))
    with pytest.raises(ValueError, match="base_model_fingerprint"):
        compose([first, AdapterFile.load(tmp_path / "b")], [1, 1])
    with pytest.raises(ValueError, match="one finite weight per adapter"):
        compose([first, first], [1, float("nan")])
    with pytest.raises(ValueError, match="one finite weight per adapter"):
        compose([first], [1, 1])
    dynamic = AdapterFile.load(dynamic_adapter(tmp_path / "d"))
    with pytest.raises(ValueError, match="triggers are not summed"):
        compose([first, dynamic], [1, 1])
    assert compose([first, dynamic], [1, 1], drop_triggers=True).config.modulation == "static"


@pytest.mark.parametrize("make", [saved_adapter, dynamic_adapter])
def test_a_pruned_file_gives_the_logits_of_set_neuron_counts(tmp_path, make):
    make(tmp_path / "a")
    assert (
        main(["prune", str(tmp_path / "a"), "--counts", "safety=2", "utility=0", "--output", str(tmp_path / "b")]) == 0
    )
    whole, cut = loaded(tmp_path / "a"), loaded(tmp_path / "b")
    before = whole(input_ids=requests()).logits
    whole.set_neuron_counts(safety=2, utility=0)
    expected = whole(input_ids=requests()).logits
    assert not torch.equal(expected, before)
    assert torch.equal(cut(input_ids=requests()).logits, expected)
    assert cut.base_model.get_neurons().totals["safety"] == 2


def test_the_trigger_of_a_pruned_adapter_can_be_dropped_with_its_neurons(tmp_path):
    file = AdapterFile.load(dynamic_adapter(tmp_path / "a"))
    assert prune(file, {"safety": 2}).neurons.totals == {"safety": 2, "utility": 4, READ_ONLY_ROLE: 4}
    static = prune(file, {"safety": 2}, drop_trigger=True)
    assert static.neurons.totals == {"safety": 2, "utility": 4}
    assert static.config.modulation == "static"
    static.save(tmp_path / "b")
    assert AdapterFile.load(tmp_path / "b").triggers == {}
    assert "trigger_bias" not in (tmp_path / "b" / "adapter_config.json").read_text()


def test_impossible_counts_are_refused(tmp_path):
    saved_adapter(tmp_path / "a")
    file = AdapterFile.load(tmp_path / "a")
    for counts in ({"safety": 99}, {"safety": -1}, {"other": 1}):
        with pytest.raises(ValueError, match="expected at most"):
            prune(file, counts)
    with pytest.raises(ValueError, match="leave no neuron"):
        prune(file, {"safety": 0, "utility": 0})


def test_a_difference_counts_neurons_and_names_changed_scales(tmp_path, capsys):
    saved_adapter(tmp_path / "a")
    other_adapter(tmp_path / "b")
    first, second = AdapterFile.load(tmp_path / "a"), AdapterFile.load(tmp_path / "b")
    found = differences(first, second)
    assert found.only_first == {"safety": 6, "utility": 4}
    assert found.only_second == {"safety": 2, "utility": 0}
    assert "neuron_counts" in found.config
    assert differences(first, first).same
    stronger = compose([first], [2.0])
    assert {(role, site, index) for role, site, index, _, _ in differences(first, stronger).changes} == {
        (role, *neuron) for role in first.neurons.roles for neuron in first.neurons.ranked(role)
    }
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["only_first"] == found.only_first


def test_a_report_and_an_adapter_are_not_compared(tmp_path, capsys):
    saved_adapter(tmp_path / "a")
    (tmp_path / "report.json").write_text("{}")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "report.json")]) == 2
    assert "expected two of a kind" in capsys.readouterr().err


def test_an_output_that_exists_is_never_overwritten(tmp_path, capsys):
    saved_adapter(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    assert main(["prune", str(tmp_path / "a"), "--counts", "safety=1", "--output", str(tmp_path / "b")]) == 2
    assert "which is not empty" in capsys.readouterr().err
    assert os.listdir(tmp_path / "b") == ["mine"]


def test_of_two_writers_of_one_directory_the_first_to_end_wins(tmp_path):
    output = tmp_path / "out"

    def write_slowly() -> None:
        with written_whole(output) as slow:
            (slow / "file").write_text("slow")
            with written_whole(output) as fast:
                (fast / "file").write_text("fast")

    with pytest.raises(ValueError, match="another process has filled meanwhile"):
        write_slowly()
    assert (output / "file").read_text() == "fast"
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_writer_leaves_nothing_that_looks_complete(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from neurontune_peft.cli.common import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as directory:\n"
        "    (directory / 'adapter_config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.") for name in os.listdir(tmp_path))


def test_dense_adapters_are_pruned_too(tmp_path):
    saved_adapter(tmp_path / "a", sparse=False)
    made = prune(AdapterFile.load(tmp_path / "a"), {"all": 5})
    assert made.neurons.total == 5
    made.save(tmp_path / "b")
    assert AdapterFile.load(tmp_path / "b").neurons.total == 5
