"""
Which attribution method finds neurons that can be trusted? Each beside layer-matched random sets.

    python benchmarks/methods.py [--model DIR] [--prompts DIR] [--methods NAME ...]
        [--training] [--quick] [--threads N]

For each method: the effect of its top neurons on the refusal margin of attacked test prompts of held-out families, its
place among 20 layer-matched random sets, the overlap of the lists of two halves of the prompts (the list itself comes
from the mean of the halves' scores), the share of the list in the first site, and, with `--training`, a short joint
training of the list's scales: what attacks of held-out families still achieve, and what it costs. One seed; the judge
sees the opening of an answer only. `rms_change` needs a second checkpoint (`--other DIR`).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from common import parser, print_header, print_table, set_up
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from neurontune_peft import Neurons, PromptSet, Scores, attribute, select, verify
from neurontune_peft.attribution.plan import METHODS
from neurontune_peft.cli.common import with_answers
from neurontune_peft.evaluation import evaluate
from neurontune_peft.evaluation.result import Report, mean_rate
from neurontune_peft.evaluation.trust import Trust
from neurontune_peft.evaluation.trust.interventions import attached
from neurontune_peft.training import MetaConfig, meta_train

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
SHARE = 0.03


class Bench:
    """What every method gets: the model, the prompts, and how much of them."""

    def __init__(self, path: str, prompts: str | None, other: str | None, *, n_prompts: int, quick: bool) -> None:
        self.path, self.other, self.quick = path, other, quick
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.prompts = with_answers(PromptSet.load(prompts), self.model(), self.tokenizer)
        self.n_prompts = 2 if quick else n_prompts
        self.tokens = 4 if quick else 16

    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()

    def score(self, method: str, half: int) -> Scores:
        """Scores for the safety role, of every other prompt of the set."""
        prompts = replace(self.prompts, prompts=tuple(p for i, p in enumerate(self.prompts.prompts) if i % 2 == half))
        options = {"n_prompts": self.n_prompts, "n_phrases": 2 if self.quick else 4}
        if method == "rms_change":
            options["other"] = AutoModelForCausalLM.from_pretrained(self.other, dtype=torch.float32).eval()
        if method == "random":
            options["seed"] = half
        return attribute(self.model(), self.tokenizer, prompts, method=method, roles=("safety",), **options)

    def top(self, scores: Scores) -> Neurons:
        return select(scores, {"safety": SHARE})

    def verified(self, neurons: Neurons) -> Trust:
        options = {"n_prompts": self.n_prompts, "n_phrases": 2, "n_detailed": 0, "max_new_tokens": self.tokens}
        return verify(self.model(), self.tokenizer, neurons, self.prompts, methods=(), steps=0, **options)

    def trained(self, neurons: Neurons) -> Report:
        """A short joint training of the scales, then the test prompts."""
        config = MetaConfig(order="none", steps=2 if self.quick else 60)
        with attached(self.model(), neurons, scale=1.0) as tuned:
            meta_train(tuned, self.tokenizer, self.prompts, config)
            return evaluate(tuned, self.tokenizer, self.prompts, max_new_tokens=self.tokens)

    def ranked(self, method: str) -> tuple[Neurons, float, float]:
        """The top neurons, the overlap of those of the halves, and the seconds that scoring took."""
        start = time.perf_counter()
        halves = [self.score(method, half) for half in (0, 1)]
        seconds = time.perf_counter() - start
        one, other = (half.values["safety"] for half in halves)
        mean = {site: (score + other[site]) / 2 for site, score in one.items()}
        first, second = map(self.top, halves)
        return self.top(Scores({"safety": mean})), first.jaccard(second), seconds

    def row(self, method: str, *, training: bool) -> list[str]:
        neurons, overlap, seconds = self.ranked(method)
        first = neurons.histogram("safety")[next(iter(neurons.widths))]
        cells = [method, f"{seconds:.0f}", f"{overlap:.2f}", f"{first / neurons.total:.0%}"]
        cells += effects(self.verified(neurons))
        return cells + costs(self.trained(neurons)) if training else cells


def effects(trust: Trust) -> list[str]:
    """Change of the margin at each scale, with the percentile among random sets."""
    return [f"{row.change:+.2f} ({row.percentile:.0f})" for row in trust.causality]


def costs(report: Report) -> list[str]:
    held_out = mean_rate(report.attack_success_held_out)
    refusals = (report.borderline_refusal, report.benign_refusal, report.wrapped_benign_refusal)
    return [f"{held_out:.1%}", *(f"{rate.rate:.1%}" for rate in refusals if rate), f"{report.perplexity:.2f}"]


HEADER = ["method", "seconds", "overlap of halves", "in the first site"]
HEADER += ["margin at scale 0 (percentile)", "at 1.5", "at 2"]
TRAINED = ["after training: attack success, held-out", "borderline refused", "benign refused"]
TRAINED += ["wrapped benign refused", "perplexity"]


def show(bench: Bench, methods: Sequence[str], *, training: bool) -> None:
    rows = []
    if training:
        base = evaluate(bench.model(), bench.tokenizer, bench.prompts, max_new_tokens=bench.tokens)
        rows.append(["base model", *["–"] * 6, *costs(base)])
    for method in methods:
        rows.append(bench.row(method, training=training))
        print(f"<!-- {' | '.join(rows[-1])} -->", flush=True)  # a long run that is cut keeps its rows
    if training:
        control = bench.ranked("gate_path")[0].layer_matched_random(1)
        rows.append(["random, layers of gate_path", *["–"] * 6, *costs(bench.trained(control))])
    print_table(HEADER + TRAINED if training else HEADER, rows)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    options.add_argument("--other", default=None, help="second checkpoint, for rms_change")
    options.add_argument("--n-prompts", type=int, default=16, help="prompts of each kind and half")
    options.add_argument("--methods", nargs="+", default=None, help="methods to compare; all by default")
    options.add_argument("--training", action="store_true", help="train the scales of each list for a while, too")
    given = set_up(options)
    known = [name for name in METHODS if name != "rms_change" or given.other]
    methods = given.methods or (["gate_path", "random"] if given.quick else known)
    print_header("Attribution methods")
    bench = Bench(given.model, given.prompts, given.other, n_prompts=given.n_prompts, quick=given.quick)
    show(bench, methods, training=given.training or given.quick)


if __name__ == "__main__":
    main()
