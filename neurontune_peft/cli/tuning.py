"""The steps of `neurontune tune`: score, select, fit the trigger, train, measure, write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.attribution.plan import MethodOptions, make_plan
from neurontune_peft.attribution.tasks import ROLES
from neurontune_peft.cli.choosing import choose, method_of, share_for_reading
from neurontune_peft.cli.command_line import command_line
from neurontune_peft.cli.common import check_output, parse_counts, with_answers, written_whole
from neurontune_peft.cli.made import Made, measured_at, printed, provenance
from neurontune_peft.cli.steps import Steps
from neurontune_peft.cli.tracking import check_tracker, tracked
from neurontune_peft.evaluation import Report, evaluate
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.prompts.prompt_set import check_tunable
from neurontune_peft.report import Document, adapter_part, compare_markdown, summary, write_report
from neurontune_peft.report.adapter import portable
from neurontune_peft.training import (
    Log,
    MetaConfig,
    TriggerFit,
    check_fittable,
    check_learnable,
    fit_trigger,
    meta_train,
    nearly_flagged,
    with_neurons,
    without_zeros,
)
from neurontune_peft.tuner import NeuronTuneConfig
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.fingerprint import fingerprint
from neurontune_peft.tuner.saved import relative_base

if TYPE_CHECKING:
    from neurontune_peft.cli.tune import Tune

logger = logging.get_logger(__name__)


def tune(command: Tune) -> dict[str, Any]:
    """Run every step; nothing stands in the output directory unless all went well. Returns the report."""
    check_output(command.output)
    _check(command)
    if command.modulation == "static" and command.training.utility_weight < MetaConfig.utility_weight:
        logger.warning(
            "got static modulation with utility_weight=%g, which suits scales of flagged requests alone; static "
            "scales act on harmless requests too, and refuse fewer of them with --utility-weight 3",
            command.training.utility_weight,
        )
    given = PromptSet.load(command.prompts)
    check_tunable(given)
    if command.modulation == "dynamic":
        check_fittable(given, **_trigger_options(command))
    model, tokenizer = command.load()
    prompts = with_answers(given, model, tokenizer, chat_template=command.chat_template)
    if not command.force:
        check_learnable(model, tokenizer, prompts, chat_template=command.chat_template)
    steps = Steps.beside(command.output, _options(command, given, model))
    try:
        _tune(command, model, tokenizer, prompts, steps, provenance_of=given)
    except ValueError:  # the same command would meet it again, so there is nothing to go on with
        shutil.rmtree(steps.directory)
        raise
    shutil.rmtree(steps.directory)
    report: dict[str, Any] = json.loads((command.output / "report.json").read_text(encoding="utf-8"))
    return report


def _tune(
    command: Tune,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    steps: Steps,
    *,
    provenance_of: PromptSet,
) -> None:
    before = steps.report("measuring the base model", lambda: _evaluate(command, model, tokenizer, prompts))
    with tracked(command.track, command.output, command.training.to_dict()) as track:
        made = make_adapter(command, model, tokenizer, prompts, steps, track)
    with steps.timed("measuring the tuned model"):
        after = _evaluate(command, made.model, tokenizer, prompts)
        parts = measured_at(made.model, command.shares, partial(_evaluate, command, made.model, tokenizer, prompts))
    made.model.peft_config["default"].provenance = provenance(
        provenance_of, made, before, after, selection=_selection(command), training=command.training
    )
    _write(command, made, before, after, parts, steps)
    print(compare_markdown(before, after))
    print(summary(before, after))
    for log in made.logs:
        print(log)
    if made.trigger is not None:
        print(made.trigger)
    size = (command.output / "adapter_model.safetensors").stat().st_size
    print(f"Adapter: {command.output} ({made.neurons.total} neurons, {size:,} bytes)")


def _check(command: Tune) -> None:
    """Refuse before the first long step what a later one would refuse."""
    check_tracker(command.track)
    make_plan(method_of(command), MethodOptions())
    unknown = [role for role in parse_counts(command.counts) if role not in ROLES]
    if unknown:
        raise ValueError(f"got role '{unknown[0]}'; expected one of {list(ROLES)}; correct --counts")
    if not 0 <= command.reading_share < 1:
        raise ValueError(
            f"got reading_share={command.reading_share}; expected a share from 0 to below 1; 0.5 is every other neuron"
        )
    if not 0 < command.nearly_flagged <= 1:
        raise ValueError(f"got nearly_flagged={command.nearly_flagged}; expected a share up to 1; 0.25 is a quarter")
    wrong = [share for share in command.shares if not 0 < share < 1]
    if wrong or command.rounds < 1:
        raise ValueError(
            f"got shares={command.shares} and rounds={command.rounds}; expected shares between 0 and 1 and at least "
            "one round; use for example --shares 0.25 0.5 --rounds 1"
        )


def make_adapter(
    command: Tune,
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
    tuned: Any = None
    held: Neurons | None = None
    kept: list[Scores] = []
    logs: list[Log] = []
    trigger: TriggerFit | None = None
    for number in range(1, command.rounds + 1):
        scored = model if tuned is None else tuned
        scores, held = choose(command, scored, tokenizer, prompts, steps, number=number, held=held)
        kept.append(scores)
        logger.info("%s", held)
        if tuned is None:
            tuned = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=held))
        else:
            tuned = with_neurons(tuned, held)
        trigger, met = _flagged(command, tuned, tokenizer, prompts, steps)
        with steps.timed(f"training scales{f' (round {number})' if command.rounds > 1 else ''}"):
            options: dict[str, Any] = {
                "chat_template": command.chat_template,
                "checkpoint": steps.directory / f"training-{number}.safetensors",
                "track": track,
            }
            logs.append(meta_train(tuned, tokenizer, met, command.training, **options))
        if logs[-1].stopped.startswith("interrupted"):
            raise KeyboardInterrupt(logs[-1].stopped)
        if number < command.rounds or command.training.l1:  # the neurons change, and the trigger's weights with them
            tuned.base_model.set_modulation("static")
    if command.training.l1:
        tuned = without_zeros(tuned)
        trigger, _ = _flagged(command, tuned, tokenizer, prompts, steps)
    if trigger is not None:
        tuned.peft_config["default"].strength_on = command.strength_on if trigger.dynamic else 1.0
    return Made(tuned, tuned.base_model.get_neurons(), tuple(kept), tuple(logs), trigger)


def _flagged(
    command: Tune, tuned: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, steps: Steps
) -> tuple[TriggerFit | None, PromptSet]:
    """Fit the trigger, and leave those prompts that scales of flagged requests are learnt from."""
    if command.modulation == "static":
        return None, prompts
    options: dict[str, Any] = {"chat_template": command.chat_template}
    with steps.timed("fitting the trigger"):
        trigger = fit_trigger(tuned, tokenizer, prompts, **_trigger_options(command), **options)
        if not trigger.dynamic:
            return trigger, prompts
        options |= {"share": command.nearly_flagged, "seed": command.training.seed}
        return trigger, nearly_flagged(tuned, tokenizer, prompts, **options)


def _trigger_options(command: Tune) -> dict[str, Any]:
    own = {"chosen_for_reading": bool(share_for_reading(command)), "window": command.trigger_window}
    return _budgets(command) | own | {"seed": command.training.seed}


def _budgets(command: Tune) -> dict[str, Any]:
    return {name: getattr(command, name) for name in ("false_positive_budget", "full_strength_budget")}


def _options(command: Tune, prompts: PromptSet, model: PreTrainedModel) -> dict[str, Any]:
    """What an interrupted run must have in common with the one that goes on."""
    weights = fingerprint(dict(model.named_parameters()))
    names = (
        "method",
        "counts",
        "overlap",
        "spread",
        "rounds",
        "modulation",
        "reading_share",
        "trigger_window",
        "false_positive_budget",
        "full_strength_budget",
        "nearly_flagged",
    )
    own = {name: str(getattr(command, name)) for name in names}
    measured: dict[str, Any] = {name: getattr(command, name) for name in ("max_new_tokens", "batch_size", "dtype")}
    measured["chat_template"] = read_template(command.chat_template)
    training = command.training.to_dict()
    return own | measured | {"weights": weights, "prompts": prompts.fingerprint, "training": training}


def _evaluate(command: Tune, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> Report:
    return evaluate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=command.max_new_tokens,
        batch_size=command.batch_size,
        chat_template=command.chat_template,
    )


def _write(command: Tune, made: Made, before: Report, after: Report, parts: dict[float, Report], steps: Steps) -> None:
    config = made.model.peft_config["default"]
    config.base_model_name_or_path = relative_base(config.base_model_name_or_path)
    with written_whole(command.output) as directory:
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
                "model": portable(command.model),
                "judges": [after.judge],
                "options": dict(after.options),
                **config.provenance,
            },
            command=command_line("tune", command),
            details=printed(made, steps.seconds),
        )
        write_report(document, directory)


def _selection(command: Tune) -> dict[str, Any]:
    counts = parse_counts(command.counts)
    chosen = {"counts": counts, "overlap": command.overlap, "spread": command.spread, "rounds": command.rounds}
    if command.modulation == "static":
        return chosen
    own = {name: getattr(command, name) for name in ("reading_share", "trigger_window", "nearly_flagged")}
    return chosen | _budgets(command) | own
