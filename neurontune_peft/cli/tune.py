"""`neurontune tune`: prompts in, a kilobyte adapter out, its effect measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.attribution import attribute
from neurontune_peft.attribution.engine import Method
from neurontune_peft.attribution.plan import MethodOptions, make_plan
from neurontune_peft.checks import write_atomically
from neurontune_peft.cli.attribute import resolved
from neurontune_peft.cli.common import ModelOptions, check_output, parse_counts, versions, with_answers, written_whole
from neurontune_peft.evaluation import Report, evaluate
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.prompt_set import check_tunable
from neurontune_peft.report import compare_markdown, summary
from neurontune_peft.report.comparison import comparison_dict
from neurontune_peft.selection import select
from neurontune_peft.training import Log, MetaConfig, meta_train
from neurontune_peft.tuner import NeuronTuneConfig

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Tune(ModelOptions):
    """
    Find the neurons, learn their scales, save the adapter, and measure its effect on attacks it was not tuned on.

    Example: neurontune tune user/chat-model --output adapter --counts safety=0.05 utility=0.05

    Args:
        output: New directory for the adapter, report.json, report.md and log.json.
        prompts: Directory of a prompt set; the shipped one by default.
        method: How neurons are scored, as in `neurontune attribute`.
        counts: Neurons per role, as a number or as a share of all neurons.
        overlap: Who keeps a neuron that both roles want, as in `neurontune select`.
        training: How the scales are learnt.
        max_new_tokens: Most tokens of an answer when measuring.
        batch_size: Requests answered at once when measuring.
    """

    output: Path = field(kw_only=True)
    prompts: str | None = None
    method: str = "gate_path"
    counts: tuple[str, ...] = ("safety=0.1", "utility=0.1")
    overlap: str = "drop"
    training: MetaConfig = field(default_factory=MetaConfig)
    max_new_tokens: int = 32
    batch_size: int = 64

    def run(self) -> None:
        """Run every step; nothing stands in the output directory unless all went well."""
        check_output(self.output)
        counts = parse_counts(self.counts)
        make_plan(self._method, MethodOptions())  # an unknown name is refused before the first long step
        given = PromptSet.load(self.prompts)
        check_tunable(given)
        model, tokenizer = self.load()
        prompts = with_answers(given, model, tokenizer, chat_template=self.chat_template)
        seconds: dict[str, float] = {}
        with timed("measuring the base model", seconds):
            before = self._evaluate(model, tokenizer, prompts)
        tuned, neurons, scores, log = self._make_adapter(model, tokenizer, prompts, counts, seconds)
        with timed("measuring the tuned model", seconds):
            after = self._evaluate(tuned, tokenizer, prompts)
        config = tuned.peft_config["default"]
        config.provenance = self._provenance(given, scores, before, after)
        with written_whole(self.output) as directory:
            tuned.save_pretrained(directory)
            neurons.save(directory / "neurons.json")
            log.save(directory / "log.json")
            report = comparison_dict(before, after) | {"provenance": config.provenance}
            write_atomically(directory / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            write_atomically(directory / "report.md", self._markdown(before, after, neurons, seconds))
        print(compare_markdown(before, after))
        print(summary(before, after))
        size = (self.output / "adapter_model.safetensors").stat().st_size
        print(f"Adapter: {self.output} ({neurons.total} neurons, {size:,} bytes)")

    @property
    def _method(self) -> str | Method:
        return resolved(self.method) if ":" in self.method else self.method

    def _make_adapter(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptSet,
        counts: dict[str, int | float],
        seconds: dict[str, float],
    ) -> tuple[PeftModel, Neurons, Scores, Log]:
        with timed("scoring neurons", seconds):
            scores = attribute(
                model,
                tokenizer,
                prompts,
                method=self._method,
                roles=tuple(counts),
                seed=self.training.seed,
                chat_template=self.chat_template,
            )
        neurons = select(scores, counts, overlap=self.overlap)
        logger.info("%s", neurons)
        tuned = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
        with timed("training scales", seconds):
            log = meta_train(tuned, tokenizer, prompts, self.training, chat_template=self.chat_template)
        return tuned, neurons, scores, log

    def _evaluate(self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> Report:
        return evaluate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            chat_template=self.chat_template,
        )

    def _provenance(self, prompts: PromptSet, scores: Scores, before: Report, after: Report) -> dict[str, Any]:
        """How the adapter was made, without times, paths or names of machines: the same run writes the same bytes."""
        return {
            "prompt_set": prompts.fingerprint,
            "attribution": dict(scores.metadata),
            "selection": {"counts": parse_counts(self.counts), "overlap": self.overlap},
            "training": self.training.to_dict(),
            "seed": self.training.seed,
            "versions": versions(),
            "metrics": {
                "base": before.as_dict(examples=False),
                "tuned": after.as_dict(examples=False),
            },
        }

    def _markdown(self, before: Report, after: Report, neurons: Neurons, seconds: dict[str, float]) -> str:
        steps = "\n".join(f"| {step} | {spent:.0f} s |" for step, spent in seconds.items())
        parts = (
            f"# Report\n\n{summary(before, after)}",
            compare_markdown(before, after),
            f"## Neurons\n\n```\n{neurons}\n```",
            f"## Time\n\n| step | time |\n|---|---|\n{steps}",
        )
        return "\n\n".join(part.strip() for part in parts) + "\n"


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a step took, and say that it begins."""
    logger.warning("%s …", step)  # at the level that transformers shows by default
    start = time.monotonic()
    yield
    seconds[step] = time.monotonic() - start
