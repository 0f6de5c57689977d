"""What do the tasks of lm-evaluation-harness say? A model with its adapter attached, run through `lm_eval`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from neurontune_peft.prompts.answers import evaluating


def harness_tasks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    task_path: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """
    Measure a model on tasks of lm-evaluation-harness. Needs the `eval` extra, and the tasks' data sets.

    Args:
        model (`nn.Module`): A causal language model, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        tasks (`Sequence[str]`): Names of tasks.
        limit (`int`, *optional*): Most examples of each task.
        task_path (`str` or `os.PathLike`, *optional*): Directory with own task files.
        batch_size (`int`, *optional*, defaults to `8`): Rows at once.

    Returns:
        `dict[str, dict[str, float]]`: Task to measure (such as `acc,none`) to value; standard errors end in `_stderr`.

    Raises:
        ImportError: the package `lm_eval` is not installed.
        ValueError: there is no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ImportError(
            "got tasks without the package lm_eval; expected it; run pip install 'neurontune-peft[eval]'"
        ) from None
    manager = TaskManager(include_path=None if task_path is None else os.fspath(task_path))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise ValueError(
            f"got tasks {unknown}; expected tasks of lm-evaluation-harness or of the task path; list them with "
            "lm_eval ls tasks"
        )
    with evaluating(model):
        wrapped: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(model=wrapped, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False)
    assert found is not None
    return {
        task: {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for task, values in found["results"].items()
    }
