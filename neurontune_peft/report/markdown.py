"""The report as Markdown, for a model card or a pull request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neurontune_peft.report.document import EXPECTED, Document
from neurontune_peft.report.figures import preset_names
from neurontune_peft.report.page import RATE_COLUMNS, details_tables, number, rate_text
from neurontune_peft.report.settings import setting_text
from neurontune_peft.report.tables import compare_markdown, counts_markdown


def report_markdown(document: Document) -> str:
    """
    Verdict, tables and provenance as Markdown; no answers, so that it fits on a card.

    Args:
        document ([`Document`]): What to show.

    Returns:
        `str`: GitHub-flavoured Markdown. Text from the report cannot open a tag or a link.

    Raises:
        ValueError: When a part of the document has another form than it should.
    """
    try:
        parts = [
            f"# Report\n\n{escaped(document.verdict)}",
            _measures(document),
            _details(document),
            _counts(document),
            document.frontier and _frontier(document.frontier, document.certificate),
            document.certificate and _certificate(document.certificate),
            document.adapter and _adapter(document.adapter),
            document.stress and _stress(document.stress),
            *(f"## {escaped(title)}\n\n{fenced(text)}" for title, text in document.details.items()),
            _provenance(document),
        ]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"got a report with a part of an unknown form ({type(error).__name__}: {error}); expected {EXPECTED}; "
            "measure again"
        ) from error
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """
    A Markdown table.

    Args:
        header (`Sequence[str]`): Names of the columns.
        rows (`Sequence[Sequence[object]]`): Cells; what is no text is written as text, and all of it is escaped.
    """
    lines = [header, *rows]
    text = ["| " + " | ".join(escaped(str(cell)) for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]])


def escaped(text: str) -> str:
    """Text in which nothing opens a tag, a link, a picture or a new cell, and nothing ends the line."""
    flat = " ".join(text.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("[", "\\[").replace("`", "'")


def fenced(text: str) -> str:
    """Text in a fence that it cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.strip()}\n{fence}"


def _measures(document: Document) -> str:
    if document.before is None:
        return f"## Measures\n\n{fenced(str(document.after))}\n\n{escaped(document.after.judge_limits)}"
    return compare_markdown(document.before, document.after)


def _details(document: Document) -> str:
    tables = [
        f"{escaped(caption)}:\n\n{table(header, rows)}"
        for caption, header, rows in details_tables(document.before, document.after)
    ]
    return "\n\n".join(["## Behind the rates", *tables]) if tables else ""


def _counts(document: Document) -> str:
    if document.before is None or not document.counts:
        return ""
    by_share = {float(share): report for share, report in document.counts.items()}
    return counts_markdown({**by_share, 1.0: document.after}, document.before)


def _frontier(frontier: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> str:
    names = preset_names(frontier, certificate)
    rows = [
        (
            setting_text(point),
            *(rate_text(point.get(column)) for column in RATE_COLUMNS),
            number(point.get("perplexity"), ".2f"),
            "yes" if point.get("pareto") else "",
            ", ".join(names.get(place, [])),
        )
        for place, point in enumerate(frontier["points"])
    ]
    header = ("setting", *RATE_COLUMNS.values(), "perplexity", "Pareto", "preset")
    return f"## Frontier\n\n{table(header, rows)}"


def _certificate(certificate: Mapping[str, Any]) -> str:
    limits = certificate.get("limits") or {}
    counts, needed = certificate.get("n") or {}, certificate.get("needed") or {}
    rows = [(name, f"{bound:.1%}", counts.get(name, "–"), needed.get(name, "–")) for name, bound in limits.items()]
    shown = table(("limit", "at most", "prompts tested", "prompts needed"), rows) if rows else ""
    return f"## Certified setting\n\n{escaped(certificate['statement'])}\n\n{shown}"


def _adapter(adapter: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {role}" for role, count in adapter["counts"].items())
    rows = [
        (
            site["site"],
            role,
            part["count"],
            site["width"],
            f"{part['mean']:.3f}",
            f"{part['low']:.3f}–{part['high']:.3f}",
        )
        for site in adapter["sites"]
        for role, part in site["roles"].items()
    ]
    text = f"{adapter['neurons']:,} of {adapter['of']:,} neurons ({counts}), {adapter['bytes']:,} bytes"
    header = ("site", "role", "neurons", "of", "mean scale", "scales")
    return f"## Neurons\n\n{escaped(text)}, for {escaped(adapter['base_model'])}.\n\n{table(header, rows)}"


def _stress(stress: Mapping[str, Any]) -> str:
    rows = [
        (
            row["name"],
            row.get("what", ""),
            row.get("measure", ""),
            *(number(row[name], ".3g") for name in ("base", "tuned", "stressed")),
            {True: "held", False: "broke"}.get(row["held"], "–"),
            row.get("note", ""),
        )
        for row in stress["rows"]
    ]
    header = ("stress", "what was done", "measure", "base", "tuned", "under stress", "outcome", "note")
    return f"## Under stress\n\n{table(header, rows)}"


def _provenance(document: Document) -> str:
    command = f"{fenced(document.command)}\n\n" if document.command else ""
    if not (command or document.provenance):
        return ""
    text = json.dumps(dict(document.provenance), indent=1, ensure_ascii=False)
    folded = f"<details><summary>How it was made and measured</summary>\n\n{fenced(text)}\n\n</details>"
    return f"## Provenance\n\n{command}{folded if document.provenance else ''}"
