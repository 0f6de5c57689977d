"""`neurontune sweep`: what does each setting of an adapter's dials protect, and what does it cost?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from neurontune_peft.checks import write_atomically
from neurontune_peft.choices import COUNTS, STRENGTHS
from neurontune_peft.cli.adapters import AdapterOptions, check_local, write_presets
from neurontune_peft.cli.common import parse_counts

if TYPE_CHECKING:
    from neurontune_peft.evaluation.decide.frontier import Frontier
    from neurontune_peft.evaluation.decide.settings import Count


ROWS, RESULT, TABLE = ".sweep.jsonl", "frontier.json", "frontier.md"
OWN = {RESULT, TABLE, "certificate.json", "stress.json", "report.json", "report.html", "report.md", "run.yaml"}


@dataclass(frozen=True)
class Sweep(AdapterOptions):
    """
    Measure an adapter along its dials, and choose presets. Nothing is trained.

    A sweep that was interrupted goes on where it stopped when the same command is given again.

    Example: neurontune sweep user/chat-model --adapter adapter --output decision --write-presets

    Args:
        output: Directory for frontier.json and frontier.md.
        strengths: Strengths, each with each count.
        counts: Shares of every role's ranking, such as 0.5, or counts by role, such as safety=64,utility=0.
        thresholds: Thresholds of the trigger; by default the adapter's own and some around it.
        max_tests: Most test requests of each kind, evenly spread; all by default.
        write_presets: Write the presets security, balanced and utility into the adapter's configuration.
    """

    output: Path = field(kw_only=True)
    strengths: tuple[float, ...] = STRENGTHS
    counts: tuple[str, ...] = tuple(f"{share:g}" for share in COUNTS)
    thresholds: tuple[float, ...] | None = None
    max_tests: int | None = None
    write_presets: bool = False

    def run(self) -> Frontier:
        """Measure, save and print."""
        from neurontune_peft.evaluation.decide.sweep import sweep
        from neurontune_peft.prompts import PromptSet

        counts = [parse_count(word) for word in self.counts]
        check_output_of_sweep(self.output)
        if self.write_presets:
            check_local(self.adapter)
        given = PromptSet.load(self.prompts)
        tuned, tokenizer = self.load_tuned()
        frontier = sweep(
            tuned,
            tokenizer,
            self.with_reference_answers(given, tuned, tokenizer),
            counts=counts,
            strengths=self.strengths,
            thresholds=self.thresholds,
            max_tests=self.max_tests,
            checkpoint=self.output / ROWS,
            **self.measuring(),
        )
        frontier.save(self.output / RESULT)
        write_atomically(self.output / TABLE, f"{frontier}\n")
        print(frontier)
        if self.write_presets and frontier.presets:
            write_presets(self.adapter, frontier.preset_settings())
            print(f"Presets: {', '.join(frontier.presets)}, in {self.adapter}")
        print(f"Frontier: {self.output}")
        return frontier


def parse_count(word: str) -> Count:
    """
    Read a share such as `0.5`, or counts by role such as `safety=64,utility=0`.

    Raises:
        ValueError: Shows the word.
    """
    if "=" in word:
        return {role: int(count) for role, count in parse_counts(word.split(",")).items()}
    try:
        return float(word)
    except ValueError:
        raise ValueError(
            f"got count '{word}'; expected a share or ROLE=NUMBER; write for example 0.5 or safety=64,utility=0"
        ) from None


def check_output_of_sweep(output: Path) -> None:
    """
    Refuse an output directory that holds anything but earlier decisions.

    Raises:
        ValueError: Names the directory.
    """
    if output.exists() and (
        not output.is_dir() or {path.name.removesuffix(".run.yaml") for path in output.glob("[!.]*")} - OWN
    ):
        raise ValueError(
            f"got output '{output}' with other files; expected a new directory, or one of an earlier sweep; choose "
            "another"
        )
