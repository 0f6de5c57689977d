"""`neurontune judge`: do these answers refuse?"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from neurontune_peft.checks import write_atomically

if TYPE_CHECKING:
    from neurontune_peft.judges import Judge, Verdict


MOST_UNSCORED = 0.05
FIELDS = ("verdict", "confidence", "reason")


@dataclass(frozen=True)
class JudgeAnswers:
    """
    Score answers that any engine made. Exit code 1 when more than 5 % of them could not be scored.

    Example: neurontune judge answers.jsonl --judge format openai:name@http://127.0.0.1:8000/v1 --output judged.jsonl

    Args:
        answers: JSON lines with "prompt" and "completion"; other keys are kept.
        output: New JSON lines file: each row with the "verdict" (refusal, partial, compliance, incoherent, unscored),
            "confidence" and "reason" of the first judge, and "verdicts" by judge where there are several.
        judge: One or more of format, opening, classifier:MODEL, rubric:MODEL, openai:MODEL@URL, module:attr.
        resume: Keep the scored rows of an existing output and of an interrupted run, and judge only the others.
    """

    answers: Annotated[Path, tyro.conf.Positional]
    output: Path = field(kw_only=True)
    judge: tuple[str, ...] = ("format",)
    resume: bool = False

    def run(self) -> None:
        """
        Judge, write and print.

        Raises:
            SystemExit: With code 1 when more than 5 % of the answers are unscored; the file is written.
        """
        from transformers.utils import logging

        from neurontune_peft.evaluation import read_answers

        rows = read_answers(self.answers)
        if self.output.exists() and not self.resume:
            raise ValueError(
                f"got output '{self.output}', which exists; expected a new file; choose another name, or --resume"
            )
        judges = judges_by_name(self.judge)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        journal = _Journal(self.output, list(judges), resume=self.resume)
        judged = []
        for row in logging.tqdm(rows, desc="verdicts", delay=2):
            judged.append(journal.known(row) or journal.add(row, _verdicts(judges, row)))
        write_atomically(self.output, "".join(_line(row) for row in judged))
        journal.close()
        self._print(judged, list(judges))

    def _print(self, judged: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        from neurontune_peft.judges import LABELS, agreements

        counts = Counter(row["verdict"] for row in judged)
        print(f"{len(judged)} answers, judge: {names[0]}")
        print("\n".join(f"  {label:<11} {counts[label]:>6}  {counts[label] / len(judged):.1%}" for label in LABELS))
        if len(names) > 1:
            for agreement in agreements({name: [row["verdicts"][name] for row in judged] for name in names}):
                print(f"\n{agreement.markdown()}")
        print(f"\nVerdicts: {self.output}")
        if counts["unscored"] > MOST_UNSCORED * len(judged):
            reason = next(row["reason"] for row in judged if row["verdict"] == "unscored")
            print(
                f"neurontune: {counts['unscored']} of {len(judged)} answers are unscored (such as: {reason}); run "
                "again with --resume to judge only these",
                file=sys.stderr,
            )
            raise SystemExit(1)


def judges_by_name(words: Sequence[str]) -> dict[str, Judge]:
    """
    Judges from words on the command line.

    Args:
        words (`Sequence[str]`): As `judge_of` reads them.

    Returns:
        `dict[str, Callable]`: Name to judge; a name that is taken is replaced by the word.

    Raises:
        ValueError: there is no such judge, no word, or a word twice.
    """
    from neurontune_peft.judges import judge_name, judge_of

    if not words or len(set(words)) < len(words):
        raise ValueError(f"got judges {list(words)}; expected at least one, each once; name them after --judge")
    judges: dict[str, Judge] = {}
    for word in words:
        judge = judge_of(word)
        name = judge_name(judge)
        judges[word if name in judges else name] = judge
    return judges


def _verdicts(judges: Mapping[str, Judge], row: Mapping[str, Any]) -> dict[str, Verdict]:
    from neurontune_peft.judges import ask

    return {name: ask(judge, row["prompt"], row["completion"]) for name, judge in judges.items()}


class _Journal:
    """Verdicts line by line beside the output, so that a killed run goes on where it stopped."""

    def __init__(self, output: Path, names: Sequence[str], *, resume: bool) -> None:
        self.path = output.with_name(f".{output.name}.part")
        self.names = list(names)
        self._known: dict[tuple[str, str], list[dict[str, Any]]] = {}
        if resume:
            for path in (output, self.path):
                self._read(path)
        self._stream = self.path.open("a" if resume else "w", encoding="utf-8")

    def known(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row with the verdicts of an earlier run by the same judges, if all of them could tell."""
        found = self._known.get((row["prompt"], row["completion"]))
        if not found:
            return None
        added = ("judges", "verdicts", *FIELDS)
        return {**row, **{name: found[-1][name] for name in added if name in found[-1]}}

    def add(self, row: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
        """Put verdicts into a row and keep it."""
        first = verdicts[self.names[0]]
        judged = {**row, "verdict": first.label, "confidence": round(first.confidence, 4), "reason": first.reason}
        if len(verdicts) > 1:
            judged["verdicts"] = {name: verdict.label for name, verdict in verdicts.items()}
        judged["judges"] = self.names
        self._stream.write(_line(judged))
        self._stream.flush()
        return judged

    def close(self) -> None:
        """Drop the journal: the output holds all of it."""
        self._stream.close()
        self.path.unlink()

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
            try:
                row = json.loads(line)
                labels = row.get("verdicts", {"": row["verdict"]}).values()
                if row["judges"] == self.names and "unscored" not in labels:
                    self._known.setdefault((row["prompt"], row["completion"]), []).append(row)
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # the last line of a killed run, or a file by another tool


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
