"""The command line, end to end on a tiny model: every file it writes, every mistake it refuses."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM

from neurontune_peft import Neurons
from neurontune_peft.cli import main
from neurontune_peft.evaluation import Report
from neurontune_peft.report import Document
from neurontune_peft.report.document import SCHEMA
from neurontune_peft.training import Log

QUICK = ["--steps", "2", "--inner-steps", "1", "--max-new-tokens", "4", "--counts", "safety=6", "utility=2"]
QUICK += ["--modulation", "static"]


@pytest.fixture(autouse=True)
def _caches_here(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def model_dir(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def prompts_dir(tmp_path) -> Path:
    tiny_prompt_set().save(tmp_path / "prompts")
    return tmp_path / "prompts"


@pytest.fixture
def tuned_dir(tmp_path, model_dir, prompts_dir) -> Path:
    output = tmp_path / "tuned"
    assert main(["tune", str(model_dir), "--prompts", str(prompts_dir), "--output", str(output), *QUICK]) == 0
    return output


def test_tune_writes_adapter_reports_neurons_and_log(tuned_dir, model_dir):
    names = {path.name for path in tuned_dir.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "report.json", "report.md", "log.json"} <= names
    assert not list(tuned_dir.parent.glob(".tuned*"))
    assert "Attack success" in (tuned_dir / "report.md").read_text()
    report = json.loads((tuned_dir / "report.json").read_text())
    assert Report.from_dict(report["before"]).held_out == ("role",)
    assert Report.from_dict(report["after"]).kl is not None
    assert len(Log.load(tuned_dir / "log.json").steps) == 2
    assert Neurons.load(tuned_dir / "neurons.json").totals == {"safety": 6, "utility": 2}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), tuned_dir)
    assert model.get_neurons().totals == {"safety": 6, "utility": 2}


def test_tune_records_how_the_adapter_was_made(tuned_dir):
    config = json.loads((tuned_dir / "adapter_config.json").read_text())
    provenance = config["provenance"]
    assert provenance["prompt_set"] == tiny_prompt_set().fingerprint
    assert provenance["attribution"]["method"] == "gradient"
    assert provenance["selection"]["counts"] == {"safety": 6, "utility": 2}
    assert provenance["training"]["steps"] == 2
    assert set(provenance["versions"]) == {"python", "neurontune-peft", "torch", "transformers", "peft", "safetensors"}
    assert set(provenance["metrics"]) == {"base", "tuned"}
    assert len(config["base_model_fingerprint"]) == 64


def test_two_runs_with_the_same_seed_write_byte_identical_adapters(
    tuned_dir, model_dir, prompts_dir, tmp_path, capsys
):
    again = tmp_path / "again"
    main(["tune", str(model_dir), "--prompts", str(prompts_dir), "--output", str(again), *QUICK])
    shown = capsys.readouterr().out
    assert "role (held out)" in shown
    assert f"Adapter: {again} (8 neurons, " in shown
    for name in ("adapter_model.safetensors", "adapter_config.json", "neurons.json", "log.json"):
        assert (tuned_dir / name).read_bytes() == (again / name).read_bytes(), name


def test_evaluate_shows_base_and_tuned_side_by_side(tuned_dir, model_dir, prompts_dir, tmp_path, capsys):
    capsys.readouterr()
    options = ["--prompts", str(prompts_dir), "--max-new-tokens", "4", "--output", str(tmp_path / "out.json")]
    assert main(["evaluate", str(model_dir), "--adapter", str(tuned_dir), *options]) == 0
    assert "held out" in capsys.readouterr().out
    measured = json.loads((tmp_path / "out.json").read_text())
    tuned = json.loads((tuned_dir / "report.json").read_text())
    jsonschema.validate(measured, json.loads(SCHEMA.read_text()))
    for part in ("before", "after", "adapter", "verdict"):
        assert measured[part] == tuned[part]
    assert measured["command"].startswith("neurontune evaluate ")
    # A path as seen from the working directory may end in the absolute one: `../../tmp/...`.
    assert not re.search(rf"(?<!\.){re.escape(str(tmp_path))}", json.dumps(measured))
    assert main(["report", str(tmp_path / "out.json"), "--output", str(tmp_path / "page")]) == 0
    assert json.loads((tmp_path / "page" / "report.json").read_text()) == measured


def test_evaluate_without_an_adapter_reports_the_model(model_dir, prompts_dir, tmp_path, capsys):
    options = ["--prompts", str(prompts_dir), "--max-new-tokens", "4", "--output", str(tmp_path / "out.json")]
    assert main(["evaluate", str(model_dir), *options]) == 0
    assert "attack success, role (held out)" in capsys.readouterr().out
    measured = json.loads((tmp_path / "out.json").read_text())
    jsonschema.validate(measured, json.loads(SCHEMA.read_text()))
    assert measured["before"] is None
    assert measured["adapter"] is None
    assert Document.load(tmp_path / "out.json").after.held_out == ("role",)


def test_evaluate_at_strength_0_reports_the_base_model(tuned_dir, model_dir, prompts_dir, tmp_path):
    options = ["--prompts", str(prompts_dir), "--max-new-tokens", "4", "--output", str(tmp_path / "out.json")]
    main(["evaluate", str(model_dir), "--adapter", str(tuned_dir), "--strength", "0", *options])
    measured = json.loads((tmp_path / "out.json").read_text())
    assert measured["after"]["examples"] == measured["before"]["examples"]
    assert measured["after"]["perplexity"] == measured["before"]["perplexity"]


def test_inspect_shows_counts_scales_and_provenance_without_a_model(tuned_dir, capsys):
    capsys.readouterr()
    assert main(["inspect", str(tuned_dir)]) == 0
    shown = capsys.readouterr().out
    assert "role safety: 6 neurons" in shown
    assert "model.layers.0.mlp.down_proj" in shown or "model.layers.1.mlp.down_proj" in shown
    assert '"prompt_set"' in shown
    assert "static: every request at strength 1" in shown
    assert main(["inspect", str(tuned_dir), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["size_bytes"] == (tuned_dir / "adapter_model.safetensors").stat().st_size
    scales = {(n["site"], n["index"]): n["scale"] for n in content["neurons"]["safety"]}
    neurons = Neurons.load(tuned_dir / "neurons.json")
    assert list(scales) == neurons.ranked("safety")
    assert all(torch.isfinite(torch.tensor(scale)) for scale in scales.values())


def test_sites_are_shown_from_the_config_alone(tmp_path, capsys):
    tiny_llama().config.save_pretrained(tmp_path)
    assert main(["sites", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "model.layers.1.mlp.down_proj  48" in shown
    assert shown.strip().endswith("2 sites, 96 neurons")
    assert main(["sites", str(tmp_path), "--json"]) == 0
    assert [site["rule"] for site in json.loads(capsys.readouterr().out)] == ["table", "table"]


def without(prompts_dir: Path, **fields: str) -> None:
    """Drop the prompts that have all of the given values."""
    path = prompts_dir / "prompts.jsonl"
    lines = [line for line in path.read_text().splitlines() if line]
    kept = [line for line in lines if not fields.items() <= json.loads(line).items()]
    path.write_text("\n".join(kept) + "\n")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--counts", "safety=100000"], "got counts"),
        (["--counts", "safety"], "got count 'safety'; expected ROLE=NUMBER"),
        (["--counts", "other=3"], "got role 'other'"),
        (["--prompts", "nowhere"], "nowhere"),
        (["--device", "nonsense"], "got model"),
    ],
)
def test_tune_refuses_a_wrong_call_and_writes_nothing(model_dir, prompts_dir, tmp_path, capsys, extra, message):
    output = tmp_path / "out"
    given = ["tune", str(model_dir), "--prompts", str(prompts_dir), "--output", str(output), *QUICK, *extra]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ({"kind": "harmful"}, "without harmful"),
        ({"kind": "benign"}, "without benign"),
        ({"split": "test"}, "without test prompts"),
    ],
)
def test_tune_refuses_a_prompt_set_that_lacks_a_kind(model_dir, prompts_dir, tmp_path, capsys, dropped, message):
    without(prompts_dir, **dropped)
    output = tmp_path / "out"
    assert main(["tune", str(model_dir), "--prompts", str(prompts_dir), "--output", str(output), *QUICK]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_tune_refuses_an_output_directory_that_is_not_empty(model_dir, prompts_dir, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    assert main(["tune", str(model_dir), "--prompts", str(prompts_dir), "--output", str(output), *QUICK]) == 2
    assert "which is not empty; expected a new or empty directory" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_tune_works_without_a_chat_template_and_says_so(tmp_path, prompts_dir):
    tiny_llama().save_pretrained(tmp_path / "plain")
    tiny_tokenizer(chat_template=None).save_pretrained(tmp_path / "plain")
    output = tmp_path / "out"
    with pytest.warns(UserWarning, match="chat template"):
        main(["tune", str(tmp_path / "plain"), "--prompts", str(prompts_dir), "--output", str(output), *QUICK])
    assert (output / "adapter_config.json").exists()


def test_evaluate_refuses_another_base_model_when_strict(tuned_dir, prompts_dir, tmp_path, capsys):
    tiny_llama(seed=5).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    given = [
        "evaluate",
        str(tmp_path / "other"),
        "--adapter",
        str(tuned_dir),
        "--prompts",
        str(prompts_dir),
        "--strict",
    ]
    assert main(given) == 2
    assert "got base model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call", [["inspect", "{here}/nothing"], ["evaluate", "{here}/nothing"], ["sites", "{here}/nothing"]]
)
def test_a_name_that_does_not_exist_is_refused_in_one_line(tmp_path, capsys, call):
    assert main([word.replace("{here}", str(tmp_path)) for word in call]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
