"""
Can a trigger that is read in the first sites act on the later ones in the same pass, without a second prefill?

    python benchmarks/same_pass.py [--model DIR] [--prompts DIR] [--share S] [--seed N] [--quick] [--threads N]

The first row is what `neurontune tune` does: the trigger reads neurons of all sites, which all are scaled, so a row
that triggers is prefilled again. In the others one half of the same number of neurons is chosen for reading among the
first sites, and not scaled; the other half is chosen by its scores among the later sites, and not read. So strength is
known before the first scaled neuron. Adapters do not act in the same pass; a second prefill gives the same answers.
Judge: format only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from choices import QUICK
from common import parser, print_header, print_table, set_up
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import (
    MetaConfig,
    Neurons,
    NeuronTuneConfig,
    PromptSet,
    Scores,
    attribute,
    evaluate,
    fit_trigger,
    for_flagged_requests,
    meta_train,
    nearly_flagged,
    reading_scores,
    select,
)
from neurontune_peft.cli.common import with_answers
from neurontune_peft.cli.tune import Tune
from neurontune_peft.evaluation import Report
from neurontune_peft.evaluation.compare.points import COLUMNS, measured_part, outcomes_of
from neurontune_peft.training.reading import SHARE, parted, with_readers

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
DEPTHS = (1 / 3, 1 / 2, 2 / 3)
READING = "reading"  # role of neurons that are read and not scaled


@dataclass(frozen=True)
class Scored:
    """A model, its prompts, and both kinds of scores."""

    model: torch.nn.Module
    tokenizer: Any
    prompts: PromptSet
    answering: Scores
    reading: Scores

    def counts(self, share: float) -> tuple[int, int]:
        """How many neurons move answers, and how many are read."""
        answering, readers = parted({"safety": share}, sum(self.answering.widths.values()), SHARE)
        return answering["safety"], readers

    def attached(self, neurons: Neurons) -> PeftModel:
        return get_peft_model(self.model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))


def within(scores: Scores, sites: list[str]) -> Scores:
    """The scores of some sites."""
    return Scores(values={"safety": {site: part for site, part in scores.values["safety"].items() if site in sites}})


def as_tune(scored: Scored, share: float, config: MetaConfig) -> PeftModel:
    """The adapter of `neurontune tune`."""
    answering, readers = scored.counts(share)
    chosen = select(scored.answering, {"safety": answering}, spread="auto")
    model = scored.attached(with_readers(chosen, scored.reading, readers))
    fit_trigger(model, scored.tokenizer, scored.prompts, chosen_for_reading=True, seed=config.seed)
    return learnt(model, scored, config)


def in_one_pass(scored: Scored, share: float, config: MetaConfig, depth: float) -> PeftModel:
    """An adapter that reads the first sites and scales the later ones."""
    sites = list(scored.answering.widths)
    first = sites[: max(1, round(depth * len(sites)))]
    later = [site for site in sites if site not in first]
    answering, readers = scored.counts(share)
    read = select(within(scored.reading, first), {"safety": readers})
    scaled = select(within(scored.answering, later), {"safety": answering}, spread="auto")
    model = scored.attached(read)
    fit_trigger(model, scored.tokenizer, scored.prompts, chosen_for_reading=True, seed=config.seed)
    weights, fitted = model.get_trigger(), model.peft_config["default"]
    model.unload()
    ranked = {READING: read.ranked("safety"), "safety": scaled.ranked("safety")}
    model = scored.attached(Neurons.from_ranked(ranked, widths=scored.answering.widths))
    layers = model.base_model.neuron_layers("default")
    model.base_model.set_trigger(
        {
            site: weights.get(site, torch.zeros(layer.neurontune_delta["default"].numel(), 2))
            for site, layer in layers.items()
        },
        bias=fitted.trigger_bias,
        threshold=fitted.trigger_threshold,
        ramp=fitted.trigger_ramp,
        suffix=fitted.trigger_suffix,
        opening=fitted.trigger_opening,
        window=fitted.trigger_window,
    )
    return learnt(model, scored, replace(config, bounds={**config.bounds, READING: (0.0, 0.0)}))


def learnt(model: PeftModel, scored: Scored, config: MetaConfig) -> PeftModel:
    """The adapter with its scales."""
    near = nearly_flagged(model, scored.tokenizer, scored.prompts, seed=config.seed)
    meta_train(model, scored.tokenizer, near, config)
    model.peft_config["default"].strength_on = Tune.strength_on
    return model


def row_of(report: Report, base: Report, held_out: Sequence[str]) -> list[str]:
    """Attack success and refusals as percentages, and how far perplexity rose."""
    outcomes = outcomes_of(report, held_out)
    rates = [outcomes[column].values() for column in COLUMNS]
    rise = (
        "–" if report.perplexity is None or not base.perplexity else f"{report.perplexity / base.perplexity - 1:+.1%}"
    )
    return [*(f"{fmean(rate):.1%}" for rate in rates), rise]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    options.add_argument("--share", type=float, default=0.03, help="share of all neurons that the adapter has")
    options.add_argument("--seed", type=int, default=0, help="seed of the choice and the training")
    given = set_up(options)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts = with_answers(PromptSet.load(given.prompts), model, tokenizer)
    config = replace(for_flagged_requests(), seed=given.seed, **(QUICK if given.quick else {}))
    tests = measured_part(prompts, 4 if given.quick else None)
    print_header("A trigger that acts in the same pass")
    scored = Scored(
        model,
        tokenizer,
        prompts,
        attribute(model, tokenizer, prompts, method="gradient", roles=("safety",), seed=given.seed),
        reading_scores(model, tokenizer, prompts, seed=given.seed),
    )
    base = evaluate(model, tokenizer, tests, base=model)
    rows = [["base model", *row_of(base, base, prompts.held_out_families)]]
    makers = {"as tune does, a second prefill": partial(as_tune, scored, given.share, config)}
    sites = len(scored.answering.widths)
    for depth in DEPTHS[1:2] if given.quick else DEPTHS:
        name = f"reads the first {max(1, round(depth * sites))} of {sites} sites, scales the others"
        makers[name] = partial(in_one_pass, scored, given.share, config, depth)
    for name, make in makers.items():
        tuned = make()
        rows.append([name, *row_of(evaluate(tuned, tokenizer, tests), base, prompts.held_out_families)])
        tuned.unload()
    columns = ["attack, held-out families", "attack, train families", "borderline refused", "benign refused"]
    print_table(["", *columns, "wrapped benign refused", "plain harmful refused", "perplexity"], rows)


if __name__ == "__main__":
    main()
