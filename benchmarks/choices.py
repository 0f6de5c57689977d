"""
What does each choice of training bring? Adapters as `neurontune tune` makes them, each with one option changed.

    python benchmarks/choices.py [--model DIR --prompts DIR] [--counts safety=0.1] [--only NAME ...] [--quick]

Attack success on new templates of held-out and of train families, 95 % intervals over requests, and what it costs. All
rows see the same prompts and seeds. With --rows FILE, finished rows are kept, and the same command goes on after an
interruption. With --quick, two steps and a few test prompts: it shows that everything runs, and its numbers mean
nothing.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import parser, print_header, print_table, set_up
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurontune_peft import PromptSet, evaluate
from neurontune_peft.choices import Limits
from neurontune_peft.cli.common import with_answers
from neurontune_peft.cli.steps import Steps
from neurontune_peft.cli.tune import Tune
from neurontune_peft.cli.tuning import make_adapter
from neurontune_peft.evaluation.compare.comparison import BASE, Comparison, Row
from neurontune_peft.evaluation.compare.journal import Journal
from neurontune_peft.evaluation.compare.points import COLUMNS, Point, measured_part, outcomes_of
from neurontune_peft.tuner.fingerprint import fingerprint

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
DEFAULT = "as tune does"
# Row to what differs from `neurontune tune`: options of training, and under "tune" those of the command.
CHANGES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "order none": {"order": "none"},
    "order first": {"order": "first"},
    "order second": {"order": "second"},
    "order reptile": {"order": "reptile"},
    "two rounds": {"tune": {"rounds": 2}},
    "nested counts": {"nested": True},
    "clusters share a scale": {"tie": "cluster"},
    "no attacks in training": {"attacks": False},
    "moving average": {"ema": 0.9},
    "L1 penalty": {"l1": 0.01},
    "scales of one sign": {"signed": False},
    "templates as they are": {"move_templates": False},
    "phrases as refusals": {"refusal_targets": "phrases"},
    "own refusals": {"refusal_targets": "own"},
    "a tenth of its neurons zeroed": {"zero_share": 0.1},
    "simulated fine-tuning": {"finetune_steps": 2},
    "no focus": {"focus": 1.0},
    "utility weight 1": {"utility_weight": 1.0},
    "learning rate 0.1": {"lr": 0.1},
    "a step at the threshold": {"tune": {"full_strength_budget": 0.08}},
    "half as many may trigger": {"tune": {"false_positive_budget": 0.04, "full_strength_budget": 0.015}},
    "twice as many may trigger": {"tune": {"false_positive_budget": 0.15, "full_strength_budget": 0.06}},
    "no neurons for reading": {"tune": {"reading_share": 0.0}},
    "a quarter for reading": {"tune": {"reading_share": 0.25}},
    "static": {"tune": {"modulation": "static"}},
}
QUICK = {"steps": 2, "inner_steps": 1, "support_size": 1, "query_size": 1, "borderline_size": 1}
SCORES = "round-1.safetensors"  # the same for all changes


def changed(tune: Tune, change: Mapping[str, Any], *, seed: int, quick: bool) -> Tune:
    """The command with one option changed; without meta-learning nothing is fine-tuned in it either."""
    options = {name: value for name, value in change.items() if name != "tune"} | (QUICK if quick else {})
    return replace(tune, training=replace(tune.training, seed=seed, **options), **change.get("tune", {}))


def point_of(
    tune: Tune,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, PromptSet],
    tests: PromptSet,
    key: tuple[str, int],
    work: Path,
) -> Point:
    """Make one adapter and measure it; the model is the base model again afterwards."""
    model, tokenizer, prompts = loaded
    directory, shared = work / f"{key[0]}-{key[1]}", work / f"{key[1]}-{SCORES}"
    directory.mkdir(parents=True, exist_ok=True)
    if shared.exists():
        shutil.copy(shared, directory / SCORES)
    start = time.monotonic()
    if key[0] == BASE:
        tuned, numbers = model, 0
    else:
        tuned = make_adapter(tune, model, tokenizer, prompts, Steps(directory)).model
        shutil.copy(directory / SCORES, shared)
        numbers = tuned.get_neurons().total
    spent = time.monotonic() - start
    options = {"max_new_tokens": tune.max_new_tokens, "batch_size": tune.batch_size}
    report = evaluate(tuned, tokenizer, tests, base=model if tuned is model else None, **options)
    if tuned is not model:
        tuned.unload()
    shutil.rmtree(directory)
    outcomes = outcomes_of(report, prompts.held_out_families)
    return Point(*key, None, True, outcomes, report.perplexity, report.kl, numbers, 0, round(spent, 1), 0)


def show(comparison: Comparison, base: Row) -> None:
    """One row per change."""
    rows = []
    for name in comparison.methods:
        row = comparison.as_trained(name)
        rise = "–" if None in (row.perplexity, base.perplexity) else f"{row.perplexity / base.perplexity - 1:+.1%}"
        rates = [str(row.rates[column]) if column in row.rates else "–" for column in COLUMNS]
        rows.append([name, *rates, rise, f"{row.kl or 0:.4f}", str(row.numbers), f"{row.seconds:.0f} s"])
    columns = ["attack, held-out families", "attack, train families", "borderline refused", "benign refused"]
    columns += ["wrapped benign refused", "plain harmful refused", "perplexity", "KL", "neurons", "time"]
    print_table(["one change", *columns], rows)


def measured(given: argparse.Namespace, work: Path) -> Comparison:
    """All rows, those of earlier runs from the file."""
    tune = Tune(given.model, output=work / "unused", prompts=given.prompts, counts=tuple(given.counts))
    tune = replace(tune, max_new_tokens=4) if given.quick else tune
    model, tokenizer = tune.load()
    prompts = with_answers(PromptSet.load(given.prompts), model, tokenizer)
    most = 4 if given.quick else given.max_tests
    names = [BASE, *dict.fromkeys([DEFAULT, *(given.only or CHANGES)])]
    options = {
        "model": fingerprint(dict(model.named_parameters())),
        "prompts": prompts.fingerprint,
        "tune": {name: value for name, value in asdict(tune).items() if name not in ("output", "model", "prompts")},
        "max_tests": most,
        "quick": given.quick,
    }
    journal = Journal(given.rows, options)
    keys = [(name, seed) for name in names for seed in range(given.seeds if name != BASE else 1)]
    for name, seed in keys:
        if (name, seed, None) not in journal.points:
            one = changed(tune, CHANGES.get(name, {}), seed=seed, quick=given.quick)
            loaded = model, tokenizer, prompts
            journal.add(point_of(one, loaded, measured_part(prompts, most), (name, seed), work))
    points = tuple(journal.points[name, seed, None] for name, seed in keys)
    return Comparison(points, "format", "", prompts.fingerprint, Limits(), DEFAULT, options)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    options.add_argument("--counts", nargs="+", default=["safety=0.1"], help="neurons per role, as in neurontune tune")
    options.add_argument("--only", nargs="+", choices=list(CHANGES), metavar="NAME", help="these changes alone")
    options.add_argument("--seeds", type=int, default=1, help="how many seeds")
    options.add_argument("--max-tests", type=int, default=None, help="most test requests of each kind")
    options.add_argument("--rows", default=None, help="file of finished rows, from which an interrupted run goes on")
    given = set_up(options)
    print_header("Choices of training")
    with tempfile.TemporaryDirectory() as scratch:
        # Beside the rows, an interrupted training goes on, too.
        work = Path(scratch) if given.rows is None else Path(f"{given.rows}.work")
        comparison = measured(given, work)
    show(comparison, comparison.as_trained(BASE))


if __name__ == "__main__":
    main()
