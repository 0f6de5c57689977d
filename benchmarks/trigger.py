"""
Which requests does a trigger catch, and would other features catch more? Detection by attack family on test prompts.

    python benchmarks/trigger.py [--model DIR] [--prompts DIR] [--quick] [--threads N]

A logistic regression as in `fit_trigger`, whose threshold lets the same share of harmless train requests trigger, each
kept back with its wrapping. The first table chooses 3 % of the neurons in other ways: by `gradient`, which finds those
that move answers, for what a trigger reads from them, or half of each, as `neurontune tune` does. The others take
those of `gradient`: at the last token of the prompt, as their mean over the prompt's tokens, and both together (as an
adapter reads them), with and without train templates whose text was moved to the other side of the request; then the
first layers alone, as a trigger that is decided there could act on the later ones in the same pass.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from common import parser, print_header, print_table, set_up
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import Neurons, PromptSet, Scores, attribute, reading_scores, select
from neurontune_peft.prompts import Prompt, encode
from neurontune_peft.prompts.records import PLACEHOLDER
from neurontune_peft.training.calibration import cross_fitted
from neurontune_peft.training.frames import FRAMES
from neurontune_peft.training.logistic import Linear, fit_logistic
from neurontune_peft.training.reading import parted, with_readers
from neurontune_peft.training.requests import Example, examples_of

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
BUDGET = 0.05
SHARES = (0.0, 0.5, 0.9)
POOLS = (("last",), ("mean",), ("last", "mean"))
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1.0)
Features = dict[str, Tensor]  # pooling to (n, k)


@dataclass(frozen=True)
class Reader:
    """Reads the activations of chosen neurons of a model."""

    model: torch.nn.Module
    tokenizer: object
    neurons: Neurons

    @torch.no_grad()
    def read(self, texts: list[str], batch_size: int = 32) -> Features:
        held: dict[str, Tensor] = {}

        def keep(site: str, index: Tensor, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            held[site] = args[0][..., index]  # (B, T, k)

        handles = [
            self.model.get_submodule(site).register_forward_pre_hook(
                lambda module, args, site=site, index=index: keep(site, index, module, args)
            )
            for site, index in self.neurons.indices["safety"].items()
        ]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        rows: dict[str, list[Tensor]] = {"last": [], "mean": []}
        for start in range(0, len(order), batch_size):
            part = [texts[place] for place in order[start : start + batch_size]]
            batch = encode(self.tokenizer, part)
            self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1)
            hidden = torch.cat([held[site] for site in self.neurons.indices["safety"]], dim=-1)  # (B, T, k)
            mask = batch.attention_mask.bool().unsqueeze(-1)
            rows["last"] += hidden[torch.arange(len(part)), batch.last_prompt].unbind()
            rows["mean"] += ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).unbind()
        for handle in handles:
            handle.remove()
        back = torch.tensor(order).argsort()
        return {name: torch.stack(values)[back] for name, values in rows.items()}


def fitted(examples: list[Example], features: Tensor) -> tuple[Linear, float, float]:
    """The regression, its penalty, and the threshold that `BUDGET` of harmless requests exceed when kept back."""
    l2, _, scores, trigger = cross_fitted(examples, features, chosen_for_reading=True)
    kept_back = torch.tensor([not example.harmful for example in examples]) & ~scores.isnan()
    return trigger, l2, float(scores[kept_back].quantile(1 - BUDGET))


def of(features: Features, pools: tuple[str, ...]) -> Tensor:
    """Activations of the neurons, in the order of their sites, shape `(n, len(pools) * k)`."""
    return torch.cat([features[pool] for pool in pools], dim=1)


def firing(examples: list[Example], train: Tensor, tests: list[Tensor]) -> list[str]:
    """The share of each group of test requests that triggers."""
    trigger, _, threshold = fitted(examples, train)
    return [f"{(trigger.score(part) > threshold).float().mean():.0%}" for part in tests]


def firing_in_frames(examples: list[Example], train: Tensor, tests: dict[str, Tensor]) -> list[str]:
    """The share of framed test requests that triggers when their kind of frame is not fitted on: mean, and largest."""
    _, l2, threshold = fitted(examples, train)
    labels = torch.tensor([example.harmful for example in examples])
    shares = []
    for kind, part in tests.items():
        others = torch.tensor([example.source != f"frame {kind}" for example in examples])
        trigger = fit_logistic(train[others], labels[others], l2=l2)
        shares.append(float((trigger.score(part) > threshold).float().mean()))
    return [f"{fmean(shares):.0%}", f"{max(shares):.0%}"]


def first_sites(scores: Scores, depth: float) -> Scores:
    """The same scores with 0 behind the first part of the sites."""
    kept = list(scores.widths)[: max(1, round(depth * len(scores.widths)))]
    values = scores.values["safety"]
    return Scores(values={"safety": {site: part if site in kept else part * 0 for site, part in values.items()}})


def framed(prompts: list[Prompt], frames: tuple[str, ...]) -> list[str]:
    """Each request in one of the frames, in turns."""
    return [frames[i % len(frames)].replace(PLACEHOLDER, prompt.prompt) for i, prompt in enumerate(prompts)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=str(DEMO), help="directory of a chat model")
    options.add_argument("--prompts", default=None, help="directory of a prompt set; the shipped one by default")
    given = set_up(options)
    most = 12 if given.quick else 150
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts = PromptSet.load(given.prompts)
    print_header("Trigger")
    n_prompts = 2 if given.quick else 32
    scores = attribute(model, tokenizer, prompts, method="gradient", roles=("safety",), n_prompts=n_prompts)
    neurons = select(scores, {"safety": 0.03}, spread="auto")
    reading = reading_scores(model, tokenizer, prompts, examples_per_kind=most)
    reader = Reader(model, tokenizer, neurons)
    fitted_on = {
        what: examples_of(prompts, folds=4, seed=0, most=most, move=move)
        for what, move in (("as they are", False), ("also moved", True))
    }
    train = {what: reader.read([example.text for example in examples]) for what, examples in fitted_on.items()}
    tests = {kind: prompts.select(kind=kind, split="test")[:most] for kind in ("harmful", "benign", "borderline")}
    groups = {"plain": [p.prompt for p in tests["harmful"]]}
    groups |= {f: prompts.attacked(tests["harmful"], family=f, split="test") for f in prompts.families(split="test")}
    groups |= {f"harmless: {kind}": [p.prompt for p in tests[kind]] for kind in ("benign", "borderline")}
    groups["harmless: wrapped"] = prompts.wrapped(tests["benign"], split="test")
    by_kind = {kind: framed(tests["benign"], frames) for kind, frames in FRAMES.items()}
    rows, moved = [], fitted_on["also moved"]
    for share in SHARES:
        counts, readers = parted({"safety": 0.03}, sum(neurons.widths.values()), share)
        own = Reader(model, tokenizer, with_readers(select(scores, counts, spread="auto"), reading, readers))
        features = of(own.read([example.text for example in moved]), POOLS[-1])
        fires = firing(moved, features, [of(own.read(texts), POOLS[-1]) for texts in groups.values()])
        unseen = {kind: of(own.read(texts), POOLS[-1]) for kind, texts in by_kind.items()}
        rows.append([f"{share:.0%}", str(own.neurons.total), *fires, *firing_in_frames(moved, features, unseen)])
    frames = ["harmless: frames of unseen kinds", "worst kind"]
    print_table(["chosen for reading", "neurons", *groups, *frames], rows)
    read = {name: reader.read(texts) for name, texts in groups.items()}
    rows = []
    for what, pools in ((what, pools) for what in fitted_on for pools in POOLS):
        fires = firing(fitted_on[what], of(train[what], pools), [of(part, pools) for part in read.values()])
        rows.append([what, " + ".join(pools), *fires])
    print_table(["train templates", "activations", *groups], rows)
    rows = []
    for depth, (what, given_scores) in product(DEPTHS, (("answers", scores), ("reading", reading))):
        chosen = select(first_sites(given_scores, depth), {"safety": neurons.total})
        own = Reader(model, tokenizer, chosen)
        features = of(own.read([example.text for example in moved]), POOLS[-1])
        fires = firing(moved, features, [of(own.read(texts), POOLS[-1]) for texts in groups.values()])
        rows.append([f"{len(chosen.sites)} of {len(neurons.widths)}", what, str(chosen.total), *fires])
    print_table(["sites read", "chosen for", "neurons", *groups], rows)


if __name__ == "__main__":
    main()
