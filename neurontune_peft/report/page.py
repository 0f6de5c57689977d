"""Every value that the page's template shows, in the order of the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from neurontune_peft.evaluation import Rate, Report
from neurontune_peft.evaluation.result import mean_rate
from neurontune_peft.report.document import Document
from neurontune_peft.report.examples import CHANGES, GROUPS, MOST_CHARACTERS, chosen, pairs_of, shortened
from neurontune_peft.report.figures import (
    families_figure,
    frontier_figure,
    layers_figure,
    preset_names,
    rates_figure,
)
from neurontune_peft.report.settings import setting_text
from neurontune_peft.report.tables import rate_change

# Field to the name in tables, the name in pictures, and what is good.
REFUSALS = {
    "plain_refusal": ("Plain harmful requests refused", "plain harmful", "higher is safer"),
    "borderline_refusal": ("Over-refusal: borderline requests refused", "borderline", "lower is better"),
    "benign_refusal": ("Benign requests refused", "benign", "lower is better"),
    "wrapped_benign_refusal": (
        "Benign requests inside attack templates refused",
        "benign inside templates",
        "lower is better",
    ),
}
RATE_COLUMNS = {
    "attack_success": "attack success",
    "over_refusal": "over-refusal",
    "benign_refusal": "benign refused",
    "wrapped_benign_refusal": "wrapped benign refused",
}
# Measures of how answers read, with intervals over resampled prompts.
READING = {
    "words": "words",
    "repetition": "share repeated",
    "first_token_refusal": "first token refuses",
    "first_token_compliance": "first token complies",
}
Table = tuple[str, list[str], list[list[str]]]


def page_context(document: Document) -> dict[str, Any]:
    """
    Work out what `report.html` shows.

    Args:
        document ([`Document`]): The report.

    Returns:
        `dict[str, Any]`: Names of the template to values.
    """
    before, after = document.before, document.after
    return {
        "document": document,
        "before": before,
        "after": after,
        "tiles": _tiles(before, after),
        "families": [_families(before, after, held_out=held_out) for held_out in (False, True)],
        "train_templates": _rate_rows(before, after, "attack_success_train_templates"),
        "costs": _costs(before, after),
        "costs_figure": rates_figure([(REFUSALS[name][1], *pair) for name, pair in _refusals(before, after)]),
        "utility": _utility(before, after),
        "counts": [(f"{float(share):.3g}", report) for share, report in document.counts.items()],
        "mean_rate": mean_rate,
        "frontier": document.frontier and _frontier(document.frontier, document.certificate),
        "layers": document.adapter and layers_figure(document.adapter),
        "details": details_tables(before, after),
        "provenance": _flat(document.provenance),
        **_examples(before, after),
    }


def _tiles(before: Report | None, after: Report) -> list[dict[str, str]]:
    """The figures that come first: mean attack success and the costs. All are better when they are lower."""
    measures: list[tuple[str, str, Callable[[Report], float | None]]] = [
        ("Attack success, held-out families", ".1%", lambda report: mean_rate(report.attack_success_held_out)),
        ("Attack success, training families", ".1%", lambda report: mean_rate(report.attack_success_trained)),
        ("Over-refusal", ".1%", lambda report: _share(report.borderline_refusal)),
        ("Benign requests refused", ".1%", lambda report: _share(report.benign_refusal)),
        ("Perplexity", ".2f", lambda report: report.perplexity),
    ]
    tiles = []
    for name, style, value in measures:
        first, second = (None if report is None else value(report) for report in (before, after))
        if second is not None:
            base, tuned = "" if first is None else format(first, style), format(second, style)
            kind = "same" if first is None or base == tuned else "good" if second < first else "bad"
            tiles.append({"name": name, "base": base, "tuned": tuned, "kind": kind})
    return tiles


def _share(rate: Rate | None) -> float | None:
    return None if rate is None else rate.rate


def _families(before: Report | None, after: Report, *, held_out: bool) -> dict[str, Any]:
    name = "attack_success_held_out" if held_out else "attack_success_trained"
    reports = [report and getattr(report, name) for report in (before, after)]
    return {
        "held_out": held_out,
        "figure": families_figure(before, after, held_out=held_out),
        "rows": _rate_rows(before, after, name),
        "means": [rates and mean_rate(rates) for rates in reports],
    }


def _rate_rows(before: Report | None, after: Report, name: str) -> list[tuple[str, Rate | None, Rate | None, str]]:
    first: Mapping[str, Rate] = {} if before is None else getattr(before, name)
    second: Mapping[str, Rate] = getattr(after, name)
    keys = dict.fromkeys((*first, *second))
    return [(key, first.get(key), second.get(key), rate_change(first.get(key), second.get(key))) for key in keys]


def _refusals(before: Report | None, after: Report) -> list[tuple[str, tuple[Rate | None, Rate | None]]]:
    found: list[tuple[str, tuple[Rate | None, Rate | None]]] = [
        (name, (None if before is None else getattr(before, name), getattr(after, name))) for name in REFUSALS
    ]
    return [(name, pair) for name, pair in found if pair != (None, None)]


def _costs(before: Report | None, after: Report) -> list[tuple[str, str, Rate | None, Rate | None, str]]:
    return [
        (REFUSALS[name][0], REFUSALS[name][2], *pair, rate_change(*pair)) for name, pair in _refusals(before, after)
    ]


def _utility(before: Report | None, after: Report) -> list[tuple[str, str, str, str]]:
    first = None if before is None else before.perplexity
    change = f"{after.perplexity / first - 1:+.1%}" if first and after.perplexity else "–"
    shown = (number(first, ".2f"), number(after.perplexity, ".2f"), change)
    divergence = (number(None if before is None else before.kl, ".4f"), number(after.kl, ".4f"), "–")
    return [
        ("Perplexity per token of benign reference answers", *shown),
        ("KL(base ‖ model) on them, nats per token", *divergence),
    ]


def _frontier(frontier: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[str, Any]:
    names = preset_names(frontier, certificate)
    rows = [
        {
            "name": setting_text(point),
            "rates": [point.get(column) for column in RATE_COLUMNS],
            "perplexity": point.get("perplexity"),
            "kl": point.get("kl"),
            "pareto": bool(point.get("pareto")),
            "names": ", ".join(names.get(place, [])),
        }
        for place, point in enumerate(frontier["points"])
    ]
    return {"rows": rows, "columns": list(RATE_COLUMNS.values()), "figure": frontier_figure(frontier, certificate)}


def _examples(before: Report | None, after: Report) -> dict[str, Any]:
    pairs = pairs_of(before, after)
    shown = chosen(pairs)
    return {
        "pairs": shown,
        "pair_total": len(pairs),
        "groups": {group: GROUPS.get(group, group) for group in dict.fromkeys(pair.group for pair in shown)},
        "family_names": list(dict.fromkeys(pair.family for pair in shown if pair.family)),
        "changes": [change for change in CHANGES if any(pair.change == change for pair in shown)],
        "change_counts": Counter(pair.change for pair in pairs),
        "shortened": shortened,
        "most_characters": MOST_CHARACTERS,
    }


def details_tables(before: Report | None, after: Report) -> list[Table]:
    """
    Tables of what lies behind the rates: verdicts of every kind, how answers read, how far judges agree.

    Args:
        before (`Report`, *optional*): The base model.
        after (`Report`): The tuned model.

    Returns:
        `list[Table]`: Caption, header and rows; empty for reports that hold the rates alone.
    """
    tables: list[Table] = []
    for name, report in (("base model", before), ("tuned model" if before else "the model", after)):
        details = None if report is None else report.as_dict(examples=False).get("details")
        if details:
            tables += _verdicts(name, details)
            tables += [_agreement(name, one) for one in details.get("agreement", [])]
    return tables


def _verdicts(name: str, details: Mapping[str, Any]) -> list[Table]:
    outcomes = details.get("outcomes", {})
    labels = list(dict.fromkeys(label for counts in outcomes.values() for label in counts))
    reading = {column: details.get(column) or {} for column in READING}
    columns = [column for column, parts in reading.items() if parts]
    rows = [
        [part, *(str(counts.get(label, 0)) for label in labels), *(_interval(reading[c].get(part)) for c in columns)]
        for part, counts in outcomes.items()
    ]
    header = ["answers to", *labels, *(READING[column] for column in columns)]
    return [(f"Verdicts and how answers read, {name}", header, rows)] if rows else []


def _agreement(name: str, one: Mapping[str, Any]) -> Table:
    confusion = one["confusion"]
    columns = list(dict.fromkeys(label for row in confusion.values() for label in row))
    caption = (
        f"{one['first']} (rows) and {one['second']} (columns), {name}: same verdict {percent(one['agreed'])}, "
        f"Cohen's kappa {number(one['kappa'], '.2f')}, {one['unscored']} not scored by both"
    )
    return caption, ["verdict", *columns], [[r, *(str(c.get(x, 0)) for x in columns)] for r, c in confusion.items()]


def _interval(values: Mapping[str, Any] | None) -> str:
    if not values:
        return "–"
    return f"{values['value']:.3g} ({values['low']:.3g}–{values['high']:.3g})"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of a table, by dotted name; a nested object is written out one level deep."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            rows += _flat(value, f"{key}.")
        elif isinstance(value, str):
            rows.append((f"{prefix}{key}", value))
        else:
            rows.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False)))
    return rows


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """A rate of a frontier with its interval."""
    if not rate:
        return "–"
    return f"{float(rate['value']):.1%} ({float(rate['low']):.1%}–{float(rate['high']):.1%})"


def percent(value: float | None) -> str:
    """A share in percent; a dash where it was not measured."""
    return number(value, ".1%")


def number(value: float | None, style: str = ".3g") -> str:
    """A number; a dash where it was not measured."""
    return "–" if value is None else format(float(value), style)
