"""`neurontune compare`: NEURONTUNE beside its controls, for what may be lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neurontune_peft.checks import write_atomically
from neurontune_peft.choices import DEFAULT_METHODS, SETTINGS, Limits
from neurontune_peft.cli.common import ModelOptions, parse_counts, with_answers
from neurontune_peft.cli.tune import Tune
from neurontune_peft.training.config import MetaConfig

if TYPE_CHECKING:
    from neurontune_peft.evaluation.compare import Comparison

ROWS, RESULT, TABLES, PLOT = "rows.jsonl", "comparison.json", "comparison.md", "pareto.png"
OWN = {ROWS, RESULT, TABLES, PLOT, "run.yaml"}


@dataclass(frozen=True)
class Compare(ModelOptions):
    """
    Train NEURONTUNE and its controls on the same prompts, measure each along its dial, and say who protects best.

    Repeat the command to go on after an interruption: finished rows are kept in OUTPUT/rows.jsonl.

    Example: neurontune compare user/chat-model --methods neurontune random lora --seeds 3 --output comparison

    Args:
        output: Directory for rows.jsonl, comparison.json, comparison.md and pareto.png.
        prompts: Directory of a prompt set; the shipped one by default.
        methods: Names of controls or of ways to score neurons, or NAME=MODULE:FUNCTION for your own way of scoring.
        seeds: How many seeds: 0, 1, 2 and so on.
        method: How the neurons of NEURONTUNE are scored.
        counts: Neurons per role, as a number or as a share of all neurons.
        overlap: Who keeps a neuron that both roles want.
        spread: Largest share of a role's neurons in one site.
        strengths: Settings of adapters.
        multipliers: Settings of the fixed multiplier.
        coefficients: Settings of activation steering.
        lr_tries: Learning rates that are tried for each trained control.
        max_tests: Most test requests of each kind, evenly spread; all by default.
        limits: Most by which each cost may rise over the base model.
        training: How scales are learnt.
        max_new_tokens: Most tokens of an answer when measuring.
        batch_size: Requests answered at once when measuring.
    """

    output: Path = field(kw_only=True)
    prompts: str | None = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    seeds: int = 1
    method: str = Tune.method
    counts: tuple[str, ...] = Tune.counts
    overlap: str = Tune.overlap
    spread: float | Literal["auto"] | None = Tune.spread
    strengths: tuple[float, ...] = SETTINGS["strength"]
    multipliers: tuple[float, ...] = SETTINGS["multiplier"]
    coefficients: tuple[float, ...] = SETTINGS["coefficient"]
    lr_tries: int = 3
    max_tests: int | None = None
    limits: Limits = field(default_factory=Limits)
    training: MetaConfig = field(default_factory=MetaConfig)
    max_new_tokens: int = 32
    batch_size: int = 64

    def run(self) -> dict[str, Any]:
        """Compare, save and print; returns what was saved."""
        from neurontune_peft.evaluation.compare import compare
        from neurontune_peft.prompts import PromptSet
        from neurontune_peft.report.controls import verdict

        check_resumable(self.output)
        counts = parse_counts(self.counts)
        methods = parse_methods(self.methods)
        prompts = PromptSet.load(self.prompts)
        model, tokenizer = self.load()
        prompts = with_answers(prompts, model, tokenizer, chat_template=self.chat_template)
        comparison = compare(
            model,
            tokenizer,
            prompts,
            methods=methods,
            seeds=range(self.seeds),
            config=self.training,
            counts=counts,
            attribution={"method": self.method},
            selection={"overlap": self.overlap, "spread": self.spread},
            settings={
                "strength": self.strengths,
                "multiplier": self.multipliers,
                "coefficient": self.coefficients,
            },
            lr_tries=self.lr_tries,
            max_tests=self.max_tests,
            limits=self.limits,
            checkpoint=self.output / ROWS,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            chat_template=self.chat_template,
        )
        self._save(comparison)
        print(comparison)
        print(verdict(comparison))
        print(f"Comparison: {self.output}")
        saved: dict[str, Any] = json.loads((self.output / RESULT).read_text(encoding="utf-8"))
        return saved

    def _save(self, comparison: Comparison) -> None:
        from transformers.utils import logging

        from neurontune_peft.report.controls import controls_markdown
        from neurontune_peft.report.pareto import pareto_plot

        comparison.save(self.output / RESULT)
        write_atomically(self.output / TABLES, controls_markdown(comparison))
        if find_spec("matplotlib") is None:
            message = "No matplotlib, so no %s; pip install neurontune-peft[plot] and repeat the command"
            logging.get_logger(__name__).warning(message, PLOT)
        else:
            pareto_plot(comparison, self.output / PLOT)


def parse_methods(words: tuple[str, ...]) -> dict[str, str | Callable[..., Any]]:
    """
    Read names of methods, and functions given as `NAME=MODULE:FUNCTION`.

    Raises:
        ValueError: Shows the word that leads to no function.
    """
    methods: dict[str, str | Callable[..., Any]] = {}
    for word in words:
        name, equals, place = word.partition("=")
        module, _, function = place.partition(":")
        try:
            methods[name] = getattr(import_module(module), function) if equals else name
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"got method '{word}' ({error}); expected a name or NAME=MODULE:FUNCTION; correct it"
            ) from error
    return methods


def check_resumable(output: Path) -> None:
    """
    Refuse an output directory that holds anything but an earlier comparison.

    Raises:
        ValueError: Names the directory.
    """
    if output.exists() and (not output.is_dir() or {path.name for path in output.glob("[!.]*")} - OWN):
        raise ValueError(
            f"got output '{output}' with other files; expected a new directory, or one of an earlier comparison; "
            "choose another"
        )
