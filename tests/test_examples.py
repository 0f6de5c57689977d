"""Every script and notebook in examples/ runs on the demo model, as it stands, on one thread."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import NeuronTuneConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _in_the_examples(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(EXAMPLES)


def run(monkeypatch, name: str, output: Path, *more: str) -> int:
    """Run a script as a user does; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [name, "--output", str(output), *more])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def deltas(directory: Path) -> torch.Tensor:
    tensors = load_file(directory / "adapter_model.safetensors")
    return torch.cat([tensor for name, tensor in tensors.items() if name.endswith("neurontune_delta")])


def test_quick_start_makes_an_adapter_that_decides_per_request(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "quick_start.py", tmp_path / "out") == 0
    assert deltas(tmp_path / "out").abs().max() > 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modulation"] == "dynamic"
    assert "Attack success" in capsys.readouterr().out


def test_own_prompts_are_written_read_and_tuned_against(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "own_prompts.py", tmp_path / "out") == 0
    assert "('fiction', 'riddle'); held out: ('developer_mode',)" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "adapter" / "report.json").read_text())
    assert "riddle" in report["after"]["attack_success"]


def test_both_trainers_change_the_deltas(tmp_path, monkeypatch):
    assert run(monkeypatch, "trainer.py", tmp_path / "out") == 0
    for name in ("trainer", "sft"):
        assert deltas(tmp_path / "out" / name).abs().max() > 0, name


def test_methods_are_compared_in_one_table(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "compare_methods.py", tmp_path / "out.json") == 0
    methods = {point["method"] for point in json.loads((tmp_path / "out.json").read_text())["points"]}
    assert methods == {"base", "neurontune", "random", "ia3", "system-prompt"}


def test_llama_cpp_answers_at_three_strengths_and_0_is_the_base_model(tmp_path, monkeypatch, capsys):
    for module in ("llama_cpp", "gguf", "neurontune_peft.export"):
        pytest.importorskip(module, reason=f"{module} is not installed (make llama)")
    from gguf_base import write_base_gguf

    model = AutoModelForCausalLM.from_pretrained(EXAMPLES / "demo_model" / "model", dtype=torch.float32)
    tuned = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", init_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    base = write_base_gguf(EXAMPLES / "demo_model" / "model", tmp_path / "base.gguf")
    more = ["--adapter", str(tmp_path / "adapter"), "--base", str(base)]
    assert run(monkeypatch, "llama_cpp_dial.py", tmp_path / "out", *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["strength 0", "strength 0.5", "strength 1"]
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "demo_model" / "model")
    chat = [{"role": "user", "content": "Explain how a lock works."}]
    batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with tuned.strength(0.0):
        whole = tuned.generate(**batch, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(whole[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert lines[0] == f"strength 0: {answer!r}"


@pytest.mark.parametrize("name", ["which_neurons", "the_dial"])
def test_a_notebook_runs_from_top_to_bottom_and_is_stored_without_output(name, capsys):
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    names: dict[str, object] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), names)
    shown = capsys.readouterr().out
    assert ("row 0 is the base model: True" if name == "the_dial" else "random") in shown
