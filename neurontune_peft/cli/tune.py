"""`neurontune tune`: prompts in, a kilobyte adapter out, its effect measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.attribution import attribute
from neurontune_peft.attribution.engine import Method
from neurontune_peft.attribution.plan import MethodOptions, make_plan
from neurontune_peft.attribution.tasks import ROLES
from neurontune_peft.cli.attribute import resolved
from neurontune_peft.cli.command_line import command_line
from neurontune_peft.cli.common import ModelOptions, check_output, parse_counts, with_answers, written_whole
from neurontune_peft.cli.made import Made, measured_at, printed, provenance
from neurontune_peft.cli.steps import Steps
from neurontune_peft.cli.tracking import Tracker, check_tracker, tracked
from neurontune_peft.evaluation import Report, evaluate
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.prompts.prompt_set import check_tunable
from neurontune_peft.report import Document, adapter_part, compare_markdown, summary, write_report
from neurontune_peft.report.adapter import portable
from neurontune_peft.selection import select
from neurontune_peft.training import (
    Log,
    MetaConfig,
    TriggerFit,
    check_fittable,
    check_learnable,
    fit_trigger,
    for_flagged_requests,
    meta_train,
    nearly_flagged,
    with_neurons,
    without,
    without_zeros,
)
from neurontune_peft.tuner import NeuronTuneConfig
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.fingerprint import fingerprint
from neurontune_peft.tuner.saved import relative_base

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Tune(ModelOptions):
    """
    Find the neurons, learn their scales, save the adapter, and measure its effect on attacks it was not tuned on.

    A run that was interrupted goes on where it stopped when the same command is given again; what it keeps meanwhile
    stands beside the output, in a hidden directory.

    Example: neurontune tune user/chat-model --output adapter --counts safety=0.05 utility=0.05

    Args:
        output: New directory for the adapter, report.html, report.md, report.json and log.json.
        prompts: Directory of a prompt set; the shipped one by default.
        method: How neurons are scored, as in `neurontune attribute`.
        counts: Neurons per role, as a number or as a share of all neurons.
        overlap: Who keeps a neuron that both roles want, as in `neurontune select`.
        spread: Largest share of a role's neurons in one site; "auto" is a quarter, more where there are few sites.
        rounds: Rounds of scoring and training; each adds its part of the counts, scored with the scales so far.
        modulation: "dynamic" scales the requests alone that a trigger on the same neurons takes for harmful; "static"
            scales all.
        false_positive_budget: Largest share of harmless requests that may trigger, on requests kept back.
        nearly_flagged: Share of the harmless train requests, those nearest to triggering, that scales are learnt from.
        strength_on: Strength of requests that trigger.
        training: How the scales are learnt.
        track: Where the losses of each step are shown: "tensorboard" (in runs/ beside the output) or "trackio".
        shares: Shares of the counts at which the adapter is measured, too.
        force: Tune a model that resists the train attacks already.
        max_new_tokens: Most tokens of an answer when measuring.
        batch_size: Requests answered at once when measuring.
    """

    output: Path = field(kw_only=True)
    prompts: str | None = None
    method: str = "gradient"
    counts: tuple[str, ...] = ("safety=0.03",)
    overlap: str = "drop"
    spread: float | Literal["auto"] | None = "auto"
    rounds: int = 1
    modulation: Literal["dynamic", "static"] = "dynamic"
    false_positive_budget: float = 0.15
    nearly_flagged: float = 0.25
    strength_on: float = 1.5
    training: MetaConfig = field(default_factory=for_flagged_requests)
    track: Tracker | None = None
    shares: tuple[float, ...] = (0.125, 0.25, 0.5)
    force: bool = False
    max_new_tokens: int = 32
    batch_size: int = 64

    def run(self) -> dict[str, Any]:
        """Run every step; nothing stands in the output directory unless all went well. Returns the report."""
        check_output(self.output)
        self._check()
        if self.modulation == "static" and self.training.utility_weight < MetaConfig.utility_weight:
            logger.warning(
                "got static modulation with utility_weight=%g, which suits scales of flagged requests alone; static "
                "scales act on harmless requests too, and refuse fewer of them with --utility-weight 3",
                self.training.utility_weight,
            )
        given = PromptSet.load(self.prompts)
        check_tunable(given)
        if self.modulation == "dynamic":
            check_fittable(given, false_positive_budget=self.false_positive_budget, seed=self.training.seed)
        model, tokenizer = self.load()
        prompts = with_answers(given, model, tokenizer, chat_template=self.chat_template)
        if not self.force:
            check_learnable(model, tokenizer, prompts, chat_template=self.chat_template)
        steps = Steps.beside(self.output, self._options(given, model))
        try:
            self._tune(model, tokenizer, prompts, steps, provenance_of=given)
        except ValueError:  # the same command would meet it again, so there is nothing to go on with
            shutil.rmtree(steps.directory)
            raise
        shutil.rmtree(steps.directory)
        report: dict[str, Any] = json.loads((self.output / "report.json").read_text(encoding="utf-8"))
        return report

    def _tune(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptSet,
        steps: Steps,
        *,
        provenance_of: PromptSet,
    ) -> None:
        before = steps.report("measuring the base model", lambda: self._evaluate(model, tokenizer, prompts))
        with tracked(self.track, self.output, self.training.to_dict()) as track:
            made = self.make_adapter(model, tokenizer, prompts, steps, track)
        with steps.timed("measuring the tuned model"):
            after = self._evaluate(made.model, tokenizer, prompts)
            parts = measured_at(made.model, self.shares, partial(self._evaluate, made.model, tokenizer, prompts))
        made.model.peft_config["default"].provenance = provenance(
            provenance_of, made, before, after, selection=self._selection(), training=self.training
        )
        self._write(made, before, after, parts, steps)
        print(compare_markdown(before, after))
        print(summary(before, after))
        for log in made.logs:
            print(log)
        if made.trigger is not None:
            print(made.trigger)
        size = (self.output / "adapter_model.safetensors").stat().st_size
        print(f"Adapter: {self.output} ({made.neurons.total} neurons, {size:,} bytes)")

    def _check(self) -> None:
        """Refuse before the first long step what a later one would refuse."""
        check_tracker(self.track)
        make_plan(self._method, MethodOptions())
        unknown = [role for role in parse_counts(self.counts) if role not in ROLES]
        if unknown:
            raise ValueError(f"got role '{unknown[0]}'; expected one of {list(ROLES)}; correct --counts")
        if not 0 < self.nearly_flagged <= 1:
            raise ValueError(f"got nearly_flagged={self.nearly_flagged}; expected a share up to 1; 0.25 is a quarter")
        wrong = [share for share in self.shares if not 0 < share < 1]
        if wrong or self.rounds < 1:
            raise ValueError(
                f"got shares={self.shares} and rounds={self.rounds}; expected shares between 0 and 1 and at least one "
                "round; use for example --shares 0.25 0.5 --rounds 1"
            )

    @property
    def _method(self) -> str | Method:
        return resolved(self.method) if ":" in self.method else self.method

    def make_adapter(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptSet,
        steps: Steps,
        track: Callable[..., None] | None = None,
    ) -> Made:
        """
        Score, select, fit the trigger, and train for what it flags: everything but measuring.

        Args:
            model (`PreTrainedModel`): The base model, which gets the adapter.
            tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
            prompts ([`PromptSet`]): The prompts, with answers.
            steps ([`Steps`]): Where scores and checkpoints stand meanwhile.
            track (`Callable`, *optional*): As in [`meta_train`].
        """
        counts = parse_counts(self.counts)
        tuned: Any = None
        held: Neurons | None = None
        kept: list[Scores] = []
        logs: list[Log] = []
        trigger: TriggerFit | None = None
        for number in range(1, self.rounds + 1):
            scored = model if tuned is None else tuned
            scores = steps.scores(f"round-{number}", partial(self._score, scored, tokenizer, prompts))
            kept.append(scores)
            more = self._select(scores, counts, held)
            held = more if held is None else held | more
            logger.info("%s", held)
            if tuned is None:
                tuned = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=held))
            else:
                tuned = with_neurons(tuned, held)
            trigger, met = self._flagged(tuned, tokenizer, prompts, steps)
            with steps.timed(f"training scales{f' (round {number})' if self.rounds > 1 else ''}"):
                options: dict[str, Any] = {
                    "chat_template": self.chat_template,
                    "checkpoint": steps.directory / f"training-{number}.safetensors",
                    "track": track,
                }
                logs.append(meta_train(tuned, tokenizer, met, self.training, **options))
            if logs[-1].stopped.startswith("interrupted"):
                raise KeyboardInterrupt(logs[-1].stopped)
            if number < self.rounds or self.training.l1:  # the neurons change, and the trigger's weights with them
                tuned.base_model.set_modulation("static")
        if self.training.l1:
            tuned = without_zeros(tuned)
            trigger, _ = self._flagged(tuned, tokenizer, prompts, steps)
        if trigger is not None:
            tuned.peft_config["default"].strength_on = self.strength_on if trigger.dynamic else 1.0
        return Made(tuned, tuned.base_model.get_neurons(), tuple(kept), tuple(logs), trigger)

    def _flagged(
        self, tuned: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, steps: Steps
    ) -> tuple[TriggerFit | None, PromptSet]:
        """Fit the trigger, and leave those prompts that scales of flagged requests are learnt from."""
        if self.modulation == "static":
            return None, prompts
        options: dict[str, Any] = {"seed": self.training.seed, "chat_template": self.chat_template}
        with steps.timed("fitting the trigger"):
            budget = self.false_positive_budget
            trigger = fit_trigger(tuned, tokenizer, prompts, false_positive_budget=budget, **options)
            if not trigger.dynamic:
                return trigger, prompts
            return trigger, nearly_flagged(tuned, tokenizer, prompts, share=self.nearly_flagged, **options)

    def _score(self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, checkpoint: Path) -> Scores:
        return attribute(
            model,
            tokenizer,
            prompts,
            method=self._method,
            roles=tuple(parse_counts(self.counts)),
            seed=self.training.seed,
            chat_template=self.chat_template,
            checkpoint=checkpoint,
        )

    def _select(self, scores: Scores, counts: dict[str, int | float], held: Neurons | None) -> Neurons:
        """This round's part of the counts: the best-scored neurons that no round before has taken."""
        part = {
            role: count / self.rounds if isinstance(count, float) else max(1, count // self.rounds)
            for role, count in counts.items()
            if count
        }
        open_scores = scores if held is None else without(scores, held)
        return select(open_scores, part, overlap=self.overlap, spread=self.spread)

    def _options(self, prompts: PromptSet, model: PreTrainedModel) -> dict[str, Any]:
        """What an interrupted run must have in common with the one that goes on."""
        weights = fingerprint(dict(model.named_parameters()))
        names = (
            "method",
            "counts",
            "overlap",
            "spread",
            "rounds",
            "modulation",
            "false_positive_budget",
            "nearly_flagged",
        )
        own = {name: str(getattr(self, name)) for name in names}
        measured: dict[str, Any] = {name: getattr(self, name) for name in ("max_new_tokens", "batch_size", "dtype")}
        measured["chat_template"] = read_template(self.chat_template)
        training = self.training.to_dict()
        return own | measured | {"weights": weights, "prompts": prompts.fingerprint, "training": training}

    def _evaluate(self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> Report:
        return evaluate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            chat_template=self.chat_template,
        )

    def _write(self, made: Made, before: Report, after: Report, parts: dict[float, Report], steps: Steps) -> None:
        config = made.model.peft_config["default"]
        config.base_model_name_or_path = relative_base(config.base_model_name_or_path)
        with written_whole(self.output) as directory:
            made.model.save_pretrained(directory)
            made.neurons.save(directory / "neurons.json")
            for number, log in enumerate(made.logs, start=1):
                log.save(directory / ("log.json" if number == len(made.logs) else f"log-{number}.json"))
            document = Document(
                before,
                after,
                counts={str(share): part for share, part in parts.items()},
                adapter=adapter_part(AdapterFile.load(directory)),
                provenance={
                    "model": portable(self.model),
                    "judges": [after.judge],
                    "options": dict(after.options),
                    **config.provenance,
                },
                command=command_line("tune", self),
                details=printed(made, steps.seconds),
            )
            write_report(document, directory)

    def _selection(self) -> dict[str, Any]:
        counts = parse_counts(self.counts)
        return {"counts": counts, "overlap": self.overlap, "spread": self.spread, "rounds": self.rounds}
