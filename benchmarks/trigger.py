"""
Which requests does a trigger catch, and would other features catch more? Detection by attack family on test prompts.

    python benchmarks/trigger.py [--model DIR] [--prompts DIR] [--quick] [--threads N]

A logistic regression as in `fit_trigger`, whose threshold lets the same share of harmless train requests trigger, each
kept back with its wrapping. The first table chooses 3 % of the neurons in other ways: by `gradient`, which finds those
that move answers, for what a trigger reads from them, or half of each, as `neurontune tune` does. The second reads
those of `tune` in other ways: at the last token of the prompt, as their mean over the turn, as that over the window of
the turn whose score is highest, and several together; with and without train templates whose text was moved to the
other side of the request. The third fits with each regularisation. The last takes the first layers alone, as a trigger
that is decided there could act on the later ones in the same pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from common import parser, print_header, print_table, set_up
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import Neurons, NeuronTuneConfig, PromptSet, Scores, attribute, reading_scores, select
from neurontune_peft.prompts import Prompt
from neurontune_peft.prompts.chat import generation_suffix, turn_opening
from neurontune_peft.prompts.records import PLACEHOLDER
from neurontune_peft.training.calibration import L2, cross_fitted
from neurontune_peft.training.features import Features, trigger_features
from neurontune_peft.training.frames import FRAMES
from neurontune_peft.training.logistic import Linear
from neurontune_peft.training.reading import SHARE, parted, with_readers
from neurontune_peft.training.requests import Example, examples_of
from neurontune_peft.training.trigger import WINDOW
from neurontune_peft.training.windowed import fit_windowed

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
BUDGET = 0.05
SHARES = (0.0, 0.5, 0.9)
WINDOWS = (12, 24, 48, 96)
PENALTIES = (0.001, 0.01, 0.1, 1.0)
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1.0)


@dataclass(frozen=True)
class Reader:
    """Reads the activations of chosen neurons of a model: where prompts end, over windows of the turn, or both."""

    model: torch.nn.Module
    tokenizer: object
    neurons: Neurons
    window: int | None = WINDOW
    last: bool = True
    turn: bool = True

    def read(self, texts: list[str]) -> Features:
        tuned = get_peft_model(self.model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=self.neurons))
        try:
            found = trigger_features(
                tuned,
                self.tokenizer,
                texts,
                adapter_name="default",
                suffix=generation_suffix(self.tokenizer),
                opening=turn_opening(self.tokenizer),
                window=self.window,
                batch_size=32,
            )
        finally:
            tuned.unload()
        # What is constant gets no weight.
        return replace(found, ends=found.ends * self.last, windows=found.windows * self.turn)


def fitted(
    examples: list[Example], features: Features, penalties: Sequence[float] = L2
) -> tuple[Linear, float, float]:
    """The regression, its penalty, and the threshold that `BUDGET` of harmless requests exceed when kept back."""
    l2, _, scores, trigger = cross_fitted(examples, features, chosen_for_reading=True, penalties=penalties)
    kept_back = torch.tensor([not example.harmful for example in examples]) & ~scores.isnan()
    return trigger, l2, float(scores[kept_back].quantile(1 - BUDGET))


def firing(
    reader: Reader, examples: list[Example], groups: dict[str, list[str]], penalties: Sequence[float] = L2
) -> list[str]:
    """The share of each group of test requests that triggers."""
    trigger, _, threshold = fitted(examples, reader.read([example.text for example in examples]), penalties)
    scores = [reader.read(texts).score(trigger) for texts in groups.values()]
    return [f"{(part > threshold).float().mean():.0%}" for part in scores]


def firing_in_frames(
    reader: Reader, examples: list[Example], groups: dict[str, list[str]], penalties: Sequence[float] = L2
) -> list[str]:
    """The share of framed test requests that triggers when their kind of frame is not fitted on: mean, and largest."""
    train = reader.read([example.text for example in examples])
    _, l2, threshold = fitted(examples, train, penalties)
    labels = torch.tensor([example.harmful for example in examples])
    shares = []
    for kind, texts in groups.items():
        others = torch.tensor([example.source != f"frame {kind}" for example in examples])
        trigger = fit_windowed(train.of(others), labels[others], l2=l2)
        shares.append(float((reader.read(texts).score(trigger) > threshold).float().mean()))
    return [f"{fmean(shares):.0%}", f"{max(shares):.0%}"]


def first_sites(scores: Scores, depth: float) -> Scores:
    """The same scores with 0 behind the first part of the sites."""
    kept = list(scores.widths)[: max(1, round(depth * len(scores.widths)))]
    values = scores.values["safety"]
    return Scores(values={"safety": {site: part if site in kept else part * 0 for site, part in values.items()}})


def framed(prompts: list[Prompt], frames: tuple[str, ...]) -> list[str]:
    """Each request in one of the frames, in turns."""
    return [frames[i % len(frames)].replace(PLACEHOLDER, prompt.prompt) for i, prompt in enumerate(prompts)]


def in_stories(texts: list[str]) -> list[str]:
    """Each text in one of the long stories, in turns."""
    stories = FRAMES["story"]
    return [stories[i % len(stories)].replace(PLACEHOLDER, text) for i, text in enumerate(texts)]


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
    total = sum(scores.widths.values())
    reading = reading_scores(model, tokenizer, prompts, examples_per_kind=most)
    plain, moved = (examples_of(prompts, folds=4, seed=0, most=most, move=move) for move in (False, True))
    tests = {kind: prompts.select(kind=kind, split="test")[:most] for kind in ("harmful", "benign", "borderline")}
    groups = {"plain": [p.prompt for p in tests["harmful"]]}
    groups |= {f: prompts.attacked(tests["harmful"], family=f, split="test") for f in prompts.families(split="test")}
    attacked = [text for family in prompts.families(split="test") for text in groups[family][::6]]
    groups["attacks in a story"] = in_stories(attacked)
    groups |= {f"harmless: {kind}": [p.prompt for p in tests[kind]] for kind in ("benign", "borderline")}
    groups["harmless: wrapped"] = prompts.wrapped(tests["benign"], split="test")
    groups["harmless: wrapped, in a story"] = in_stories(groups["harmless: wrapped"])
    by_kind = {kind: framed(tests["benign"], frames) for kind, frames in FRAMES.items()}

    def chosen(share: float) -> Neurons:
        counts, readers = parted({"safety": 0.03}, total, share)
        return with_readers(select(scores, counts, spread="auto"), reading, readers)

    rows = []
    for share in SHARES[1:2] if given.quick else SHARES:
        reader = Reader(model, tokenizer, chosen(share))
        fires = firing(reader, moved, groups) + firing_in_frames(reader, moved, by_kind)
        rows.append([f"{share:.0%}", str(reader.neurons.total), *fires])
    frames = ["harmless: frames of unseen kinds", "worst kind"]
    print_table(["chosen for reading", "neurons", *groups, *frames], rows)
    neurons, windows = chosen(SHARE), [WINDOW] if given.quick else WINDOWS
    reader_of_tune = Reader(model, tokenizer, neurons)
    readers = {
        "last": Reader(model, tokenizer, neurons, None, turn=False),
        "turn": Reader(model, tokenizer, neurons, None, last=False),
        f"window of {WINDOW}": Reader(model, tokenizer, neurons, last=False),
        "last + turn": Reader(model, tokenizer, neurons, None),
        **{f"last + window of {window}": Reader(model, tokenizer, neurons, window) for window in windows},
    }
    rows = []
    for name, reader in readers.items():
        fires = firing(reader, moved, groups) + firing_in_frames(reader, moved, by_kind)
        rows.append([name, "also moved", *fires])
    for name in ("last + turn", f"last + window of {WINDOW}"):
        fires = firing(readers[name], plain, groups) + firing_in_frames(readers[name], plain, by_kind)
        rows.append([name, "as they are", *fires])
    print_table(["activations", "train templates", *groups, *frames], rows)
    rows = []
    for penalty in PENALTIES[-1:] if given.quick else PENALTIES:
        fires = firing(reader_of_tune, moved, groups, [penalty])
        rows.append([f"{penalty:g}", *fires, *firing_in_frames(reader_of_tune, moved, by_kind, [penalty])])
    print_table(["penalty", *groups, *frames], rows)
    rows = []
    depths = DEPTHS[:1] if given.quick else DEPTHS
    for depth, (what, given_scores) in product(depths, (("answers", scores), ("reading", reading))):
        own = select(first_sites(given_scores, depth), {"safety": neurons.total})
        fires = firing(Reader(model, tokenizer, own), moved, groups)
        rows.append([f"{len(own.sites)} of {len(scores.widths)}", what, str(own.total), *fires])
    print_table(["sites read", "chosen for", "neurons", *groups], rows)


if __name__ == "__main__":
    main()
