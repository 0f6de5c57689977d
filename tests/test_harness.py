"""Tasks of lm-evaluation-harness, on a tiny local task."""

import importlib.util
import json
from pathlib import Path

import pytest
from helpers import tiny_llama, tiny_tokenizer

from neurontune_peft.evaluation.harness import harness_tasks

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.skipif(INSTALLED, reason="lm_eval is installed")
def test_tasks_without_the_harness_say_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"got tasks without .*; expected it; run pip install .*eval"):
        harness_tasks(tiny_llama(), tiny_tokenizer(), ["tiny_choice"])


@pytest.mark.skipif(not INSTALLED, reason="lm_eval (extra eval) is not installed")
def test_a_local_task_is_measured_on_the_model_as_it_is(tmp_path: Path) -> None:
    rows = [{"question": f"Is it {i}?", "label": i % 2} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    found = harness_tasks(tiny_llama(), tiny_tokenizer(), ["tiny_choice"], task_path=tmp_path, batch_size=2)
    assert 0.0 <= found["tiny_choice"]["acc,none"] <= 1.0
    with pytest.raises(ValueError, match=r"got tasks \['no_such_task'\]; expected"):
        harness_tasks(tiny_llama(), tiny_tokenizer(), ["no_such_task"], task_path=tmp_path)
