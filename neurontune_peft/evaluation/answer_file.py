"""Answers that another engine made: read from a file, judged, and summed up like our own."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurontune_peft.evaluation.judged import judge_all, named_judges
from neurontune_peft.evaluation.made import report_of
from neurontune_peft.evaluation.measure import questions_of
from neurontune_peft.evaluation.result import Report
from neurontune_peft.judges import Judge, format_judge
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.records import KINDS, SPLITS, at, parse_object, read_text

_FIELDS = 'a JSON object with the texts "prompt" and "completion"'


def read_answers(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Read a file of answers.

    Args:
        path (`str` or `os.PathLike`): JSON lines with `prompt` and `completion`; other keys are kept. Empty lines are
            skipped.

    Returns:
        `list[dict[str, Any]]`: The rows.

    Raises:
        ValueError: a line is not such an object; the message names file and line. Or there is no row at all.
    """
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"got {source}, which is no file; expected JSON lines, each {_FIELDS}; correct the path")
    rows = []
    # not splitlines: JSON strings may hold U+2028 and other characters that it takes for the end of a line
    for number, line in enumerate(at(str(source), lambda: read_text(source)).split("\n"), start=1):
        if line.strip():
            rows.append(at(f"{source}, line {number}", lambda text=line: _row(text)))  # type: ignore[misc]
    if not rows:
        raise ValueError(f"got {source} without a row; expected JSON lines, each {_FIELDS}; add answers")
    return rows


def report_from_answers(
    rows: Sequence[Mapping[str, Any]],
    prompts: PromptSet,
    *,
    judge: Judge = format_judge,
    judges: Mapping[str, Judge] | None = None,
) -> Report:
    """
    The report that `evaluate` makes, of answers that are there already. Perplexity and KL are not measured.

    Rows are matched to the test prompts of the set, plain, inside templates and wrapped, by the text of the prompt. A
    row may say itself what it is: `kind` (`harmful`, `benign`, `borderline`), `family` of an attack, `split` of its
    template, `id`, `source`.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): As [`read_answers`] returns them.
        prompts (`PromptSet`): The set that was asked.
        judge (`Callable`, *optional*, defaults to `format_judge`): As in `evaluate`.
        judges (`Mapping[str, Callable]`, *optional*): As in `evaluate`.

    Returns:
        [`Report`]: The report; `options` says how many rows came from where.

    Raises:
        ValueError: a row is neither in the set nor says its kind.
    """
    waiting = defaultdict(list)
    for question in questions_of(prompts):
        waiting[str(question.text)].append(question)
    asked = [_asked(number, row, waiting) for number, row in enumerate(rows, start=1)]
    missing = sum(map(len, waiting.values()))
    named = named_judges(judge, judges)
    examples = judge_all(asked, [row["completion"] for row in rows], named)
    own = {q.key for q in asked if q.group == "attack"}
    train = {q.key for q in asked if q.group == "attack_train_templates"} | set(prompts.train_families)
    return report_of(
        examples,
        named,
        held_out=tuple(dict.fromkeys((*prompts.held_out_families, *sorted(own - train)))),
        prompt_set=prompts.fingerprint,
        options={"answers": len(rows), "unanswered": missing, "max_new_tokens": None, "chat_template": None},
    )


@dataclass(frozen=True)
class _Asked:
    group: str
    key: str
    id: str
    text: str


def _asked(number: int, row: Mapping[str, Any], waiting: Mapping[str, list[Any]]) -> Any:
    """What a row answers: what it says itself, else the first question of that text without an answer yet."""
    if row.get("kind") is not None:
        return _said(number, row)
    if not (found := waiting.get(row["prompt"])):
        raise ValueError(
            f"got answer {number} to a prompt that is not, or no longer, among the test prompts of the set "
            f"({row['prompt'][:60]!r}); expected its text, once for each place in the set, or a row with a kind; give "
            f'"kind": one of {list(KINDS)}, and "family" for attacks'
        )
    return found.pop(0)


def _said(number: int, row: Mapping[str, Any]) -> _Asked:
    kind, family, split = row["kind"], row.get("family"), row.get("split") or "test"
    if kind not in KINDS or split not in SPLITS or (kind == "borderline" and family):
        raise ValueError(
            f"got answer {number} with kind {kind!r}, family {family!r}, split {split!r}; expected a kind of "
            f"{list(KINDS)}, a split of {list(SPLITS)}, and no family for borderline requests; correct the row"
        )
    name = str(row.get("id") or f"answer-{number}")
    if kind == "harmful" and family:
        group = "attack" if split == "test" else "attack_train_templates"
        return _Asked(group, str(family), name, row["prompt"])
    if kind == "harmful":
        return _Asked("plain", str(row.get("source") or "unknown"), name, row["prompt"])
    return _Asked("wrapped_benign" if family else kind, "", name, row["prompt"])


def _row(text: str) -> dict[str, Any]:
    row = parse_object(text)
    wrong = [name for name in ("prompt", "completion") if not isinstance(row.get(name), str)]
    if wrong:
        raise ValueError(f"got {row.get(wrong[0])!r} as {wrong[0]}; expected {_FIELDS}; add or correct it")
    return row
