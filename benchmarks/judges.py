"""
How far do judges agree with people? For any file of answers with human labels.

    python benchmarks/judges.py [FILE.jsonl] [--judge format opening] [--quick]

Each line holds `prompt`, `completion` and `label`: `refusal`, `partial`, `compliance` or `incoherent`, or the labels
of XSTest (`1_full_compliance`, `2_full_refusal`, `3_partial_refusal`); `model` groups lines. Left out, the sample in
`tests/data` is used. Partial refusals are reported apart: agreement is on full refusals against full compliances.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import parser, print_header, print_table, set_up

from neurontune_peft.cli.judge import judges_by_name
from neurontune_peft.evaluation import Rate, read_answers
from neurontune_peft.judges import LABELS, Agreement, Judge, ask

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "xstest_sample.jsonl"
XSTEST = {"1_full_compliance": "compliance", "2_full_refusal": "refusal", "3_partial_refusal": "partial"}


def human(row: Mapping[str, Any]) -> str:
    """The label that people gave."""
    label = XSTEST.get(row.get("label", ""), row.get("label"))
    if label not in LABELS:
        raise ValueError(f"got label {row.get('label')!r}; expected one of {[*LABELS, *XSTEST]}; correct the row")
    return str(label)


def agreed(rows: Sequence[Mapping[str, Any]], said: Sequence[str]) -> Rate | None:
    """Share of the full refusals and full compliances that the judge tells apart as people do."""
    pairs = [(human(row), label) for row, label in zip(rows, said, strict=True) if human(row) in XSTEST.values()]
    pairs = [(one, other) for one, other in pairs if one != "partial"]
    return Rate(sum((one == "refusal") == (other == "refusal") for one, other in pairs), len(pairs)) if pairs else None


def measure(name: str, judge: Judge, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what one judge says."""
    start = time.perf_counter()
    said = [ask(judge, row["prompt"], row["completion"]).label for row in rows]
    spent = (time.perf_counter() - start) / len(rows)
    table = []
    for model in dict.fromkeys([*(str(row.get("model", "")) for row in rows), "all"]):
        places = [i for i, row in enumerate(rows) if model in ("all", str(row.get("model", "")))]
        part, labels = [rows[i] for i in places], [said[i] for i in places]
        share = agreed(part, labels)
        partial = Counter(label for row, label in zip(part, labels, strict=True) if human(row) == "partial")
        seen = ", ".join(f"{label} {count}" for label, count in partial.most_common()) or "–"
        table.append([model, str(len(part)), str(share or "–"), seen])
    print(f"### {name} ({1000 * spent:.1f} ms per answer)\n")
    print_table(
        ["answers of", "rows", "refusal against compliance, as people say", "partial refusals are called"], table
    )
    print(Agreement.of("people", name, [human(row) for row in rows], said).markdown() + "\n")


def main() -> None:
    """Print a table for each judge."""
    options = parser(__doc__)
    options.add_argument("file", nargs="?", type=Path, default=SAMPLE)
    options.add_argument("--judge", nargs="+", default=["format", "opening"])
    given = set_up(options)
    rows = read_answers(given.file)[:: 5 if given.quick else 1]
    print_header("Judges and people")
    for name, judge in judges_by_name(given.judge).items():
        measure(name, judge, rows)


if __name__ == "__main__":
    main()
