"""Tasks of lm-evaluation-harness, on a tiny local task."""

import json
import sys
from pathlib import Path

import pytest
import torch
from adapters import randomize, tuned_model
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from torch import nn

from neurontune_peft.cli import main
from neurontune_peft.evaluation.harness import harness_tasks
from neurontune_peft.report import Document

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "nay"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_tasks_without_the_harness_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"got tasks without .*; expected it; run pip install .*eval"):
        harness_tasks(tiny_llama(), tiny_tokenizer(), ["tiny_choice"])


WORDS = ["a", "bc", "def", "Ghi", "J", "KL", "mno", "p"]
ROWS = [{"question": f"Is {word} it?", "label": i % 3 // 2} for i, word in enumerate(WORDS)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with one task and its data."""
    pytest.importorskip("lm_eval", reason="lm_eval (extra eval) is not installed")
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "tiny.yaml").write_text(TASK.format(data=directory / "data.jsonl"))
    return directory


def accuracy(model: nn.Module) -> float:
    """Share of the questions whose right answer is the likelier one, by hand."""
    tokenizer, right = tiny_tokenizer(), 0
    for row in ROWS:
        question = tokenizer(row["question"], add_special_tokens=False).input_ids
        sums = []
        for choice in (" yes", " nay"):
            whole = tokenizer(row["question"] + choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                found = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            answer = range(len(question), len(whole))
            sums.append(sum(float(found[place - 1, whole[place]]) for place in answer))
        right += sums.index(max(sums)) == row["label"]
    return right / len(ROWS)


def test_a_local_task_is_measured_on_the_model_with_its_adapter_and_an_unknown_one_refused(tasks: Path) -> None:
    model = tuned_model(tiny_llama())
    randomize(model, seed=4, std=8.0)
    measured = []
    for strength in (0.0, 1.0):
        model.set_strength(strength)
        found = harness_tasks(model, tiny_tokenizer(), ["tiny_choice"], task_path=tasks, batch_size=2)
        assert found["tiny_choice"]["acc,none"] == pytest.approx(accuracy(model))
        measured.append(found["tiny_choice"]["acc,none"])
    model.set_strength(0.0)
    assert measured[0] == accuracy(model.get_base_model())
    assert measured[0] != measured[1]
    with pytest.raises(ValueError, match=r"got tasks \['no_such_task'\]; expected"):
        harness_tasks(tiny_llama(), tiny_tokenizer(), ["no_such_task"], task_path=tasks)


def test_the_command_writes_the_tasks_of_base_and_tuned_model_into_the_report(tasks: Path, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")
    tuned_model(tiny_llama()).save_pretrained(tmp_path / "adapter")
    words = ["evaluate", str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter"), "--max-new-tokens", "4"]
    words += ["--prompts", str(tmp_path / "prompts"), "--output", str(tmp_path / "report.json")]
    words += ["--tasks", "tiny_choice", "--tasks-path", str(tasks), "--tasks-limit", "4"]
    assert main(words) == 0
    report = Document.load(tmp_path / "report.json")
    for measured in (report.before, report.after):
        assert measured.details.tasks["tiny_choice"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
