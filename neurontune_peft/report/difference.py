"""Which of two models is safer? Two reports side by side, with paired tests where both answered the same requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from neurontune_peft.evaluation import Rate, Report
from neurontune_peft.evaluation.statistics import holm, mcnemar
from neurontune_peft.report.document import Document
from neurontune_peft.report.examples import Pair, pairs_of
from neurontune_peft.report.markdown import escaped, table
from neurontune_peft.report.tables import rate_change

GROUPS = {
    "plain_refusal": ("plain", "plain harmful requests refused"),
    "borderline_refusal": ("borderline", "borderline requests refused"),
    "benign_refusal": ("benign", "benign requests refused"),
    "wrapped_benign_refusal": ("wrapped_benign", "benign requests inside templates refused"),
}


@dataclass(frozen=True)
class _Row:
    """One rate of both models; `p` is that of the exact McNemar test on `n` requests in both."""

    name: str
    first: Rate | None
    second: Rate | None
    n: int = 0
    p: float | None = None


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """
    Compare the tuned models of two reports (or the models, where each was measured alone).

    Args:
        a (`Mapping[str, Any]`): The first report, in any form that [`Document.from_dict`] reads.
        b (`Mapping[str, Any]`): The second report.

    Returns:
        `str`: Markdown: a table of rates with intervals, their differences, and for requests that both reports hold
            answers to, two-sided p-values of exact McNemar tests, corrected by Holm (1979) over the rows of the table.

    Raises:
        ValueError: When one of the two is no report.
    """
    first, second = Document.from_dict(a).after, Document.from_dict(b).after
    rows = _rows(first, second)
    corrected = holm({place: row.p for place, row in enumerate(rows) if row.p is not None})
    lines = [
        (
            row.name,
            _cell(row.first),
            _cell(row.second),
            rate_change(row.first, row.second),
            row.n or "–",
            "–" if row.p is None else f"{corrected[place]:.3g}",
        )
        for place, row in enumerate(rows)
    ]
    lines += [
        (name, _number(one), _number(two), "–" if not (one and two) else f"{two / one - 1:+.1%}", "–", "–")
        for name, one, two in (("perplexity", first.perplexity, second.perplexity),)
    ]
    header = ("measure", "A", "B", "B − A", "paired requests", "p (Holm)")
    notes = "\n".join(f"- {note}" for note in _notes(first, second, paired=any(row.n for row in rows)))
    return f"# Two reports\n\n{table(header, lines)}\n\n{notes}\n"


def _rows(first: Report, second: Report) -> list[_Row]:
    pairs = [pair for pair in pairs_of(first, second) if pair.scored] if first.judge == second.judge else []
    rows = []
    for family in dict.fromkeys((*first.attack_success, *second.attack_success)):
        held_out = family in first.held_out or family in second.held_out
        own = [pair for pair in pairs if pair.group == "attack" and pair.family == family]
        name = f"attack success, {family}{' (held out)' if held_out else ''}"
        rows.append(_tested(name, first.attack_success.get(family), second.attack_success.get(family), own))
    for field, (group, name) in GROUPS.items():
        own = [pair for pair in pairs if pair.group == group]
        rows.append(_tested(name, getattr(first, field), getattr(second, field), own))
    return [row for row in rows if row.first or row.second]


def _tested(name: str, first: Rate | None, second: Rate | None, pairs: Iterable[Pair]) -> _Row:
    changes = [pair.change for pair in pairs]
    if not changes:
        return _Row(name, first, second)
    p = mcnemar(changes.count("newly refused"), changes.count("newly answered"))
    return _Row(name, first, second, len(changes), p)


def _notes(first: Report, second: Report, *, paired: bool) -> list[str]:
    """What a reader has to know before believing the table."""
    notes = []
    for what, one, two in (
        ("judge", first.judge, second.judge),
        ("prompt set", first.prompt_set[:12], second.prompt_set[:12]),
        *(
            (name, first.options.get(name), second.options.get(name))
            for name in sorted({*first.options, *second.options} - {"batch_size"})
        ),
    ):
        if one != two:
            notes.append(f"**Not the same {escaped(what)}**: {escaped(str(one))} and {escaped(str(two))}.")
    if first.judge == second.judge:
        notes.append(f"Judge: {escaped(first.judge)}. {escaped(first.judge_limits)}")
    if not paired:
        notes.append("No test: the reports hold no answers to the same requests that one judge scored.")
    return notes


def _cell(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate}, {rate.successes}/{rate.total}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
