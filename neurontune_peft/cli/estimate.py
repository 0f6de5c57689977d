"""What will a command cost? Time and memory from about two batches of each of its steps; nothing is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import torch
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurontune_peft.attribution import attribute
from neurontune_peft.cli.choosing import method_of, share_for_reading
from neurontune_peft.cli.common import parse_counts
from neurontune_peft.evaluation import evaluate
from neurontune_peft.evaluation.compare.run import measured_part, resolve_methods
from neurontune_peft.neurons import Scores
from neurontune_peft.prompts import PromptSet, complete_responses, generate_answers
from neurontune_peft.selection import select
from neurontune_peft.training import check_fittable, meta_train
from neurontune_peft.training.reading import EXAMPLES
from neurontune_peft.tuner import NeuronTuneConfig

TRAIN_KEPT = 16  # train prompts of each kind: as many as one batch of any step takes
STEPS = 2


@dataclass(frozen=True)
class Part:
    """
    One step of a command.

    Args:
        step (`str`): What is done.
        measured (`float`): Seconds that the measured part took.
        factor (`float`): How many times as much the command does.
    """

    step: str
    measured: float
    factor: float

    @property
    def seconds(self) -> float:
        """`float`: Seconds of the whole step."""
        return self.measured * self.factor


@dataclass(frozen=True)
class Estimate:
    """
    Time and memory of a command before it runs.

    Args:
        command (`str`): The command.
        device (`str`): Where it was measured.
        parts (`tuple[Part, ...]`): Its steps.
        peak_bytes (`int`, *optional*): Most memory that was held while measuring: of the GPU's allocator where there
            is one, else of the whole process. The measured batches are of full size, so the command needs about as
            much.
    """

    command: str
    device: str
    parts: tuple[Part, ...]
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """`float`: Seconds of all steps."""
        return sum(part.seconds for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """The estimate as JSON types."""
        parts = [asdict(part) | {"seconds": part.seconds} for part in self.parts]
        return asdict(self) | {"parts": parts, "seconds": self.seconds}

    def __str__(self) -> str:
        shown = "{:28}{:10.0f} s   ({:.2f} s x {:.1f})"
        rows = [shown.format(part.step, part.seconds, part.measured, part.factor) for part in self.parts]
        memory = "unknown" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.2f} GiB"
        return "\n".join(
            [
                f"neurontune {self.command} on {self.device}, estimated from about two batches of each step:",
                *rows,
                f"{'total':28}{self.seconds:10.0f} s",
                f"peak memory: {memory}. Nothing was written.",
            ]
        )


@dataclass(frozen=True)
class Bench:
    """What the steps are measured with: a command, its model, the whole prompt set and a small part of it."""

    command: Any
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    whole: PromptSet
    small: PromptSet

    def evaluation(self, step: str, times: int = 1, *, max_tests: int | None = None) -> Part:
        """Answering and measuring; `times` how often the command measures."""
        tests = len(measured_part(self.whole, max_tests).select(split="test"))
        factor = tests / len(self.small.select(split="test"))
        names = ("max_new_tokens", "batch_size", "chat_template")
        options = {name: getattr(self.command, name) for name in names}
        seconds, _ = _timed(lambda: evaluate(self.model, self.tokenizer, self.small, **options))
        return Part(step, seconds, factor * times)

    def attribution(self, step: str, times: int = 1, **options: Any) -> tuple[Part, Scores]:
        """Scoring neurons; `options` are those of [`attribute`]."""
        wanted = options.pop("n_prompts", 32)
        train = len(self.whole.select(split="train", kind="harmful"))
        kept = len(self.small.select(split="train", kind="harmful"))
        whole = train if wanted is None else min(train, wanted)
        n_prompts = min(kept, whole)
        options = {"chat_template": self.command.chat_template, **options, "n_prompts": n_prompts}
        seconds, scores = _timed(lambda: attribute(self.model, self.tokenizer, self.small, **options))
        return Part(step, seconds, times * whole / n_prompts), scores

    def training(self, step: str, scores: Scores, times: float = 1, *, config: Any) -> Part:
        """Learning scales, on an adapter that is thrown away."""
        command = self.command
        neurons = select(scores, parse_counts(command.counts), overlap=command.overlap, spread=command.spread)
        tuned = get_peft_model(self.model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
        short = replace(config, steps=STEPS)
        options = {"chat_template": command.chat_template}
        try:
            seconds, _ = _timed(lambda: meta_train(tuned, self.tokenizer, self.small, short, **options))
        finally:
            tuned.unload()
        return Part(step, seconds, times * config.steps / STEPS)

    def trigger(self, step: str) -> Part:
        """Reading the activations of the requests that a trigger is fitted on; the fit itself takes little."""
        command = self.command
        reading = bool(share_for_reading(command))
        budget = {"false_positive_budget": command.false_positive_budget, "chosen_for_reading": reading}
        examples = check_fittable(self.whole, **budget, seed=command.training.seed)
        texts = [prompt.prompt for prompt in self.small.prompts][:32]
        options = {"max_new_tokens": 1, "batch_size": 16, "chat_template": command.chat_template}
        seconds, _ = _timed(lambda: generate_answers(self.model, self.tokenizer, texts, **options))
        read = len(examples)
        if reading:
            read += min(EXAMPLES, sum(example.chooses_readers for example in examples))
        return Part(step, seconds, read / len(texts))


def measure(name: str, command: Any) -> Estimate:
    """
    Load the model, run about two batches of each step of a command, and multiply.

    Args:
        name (`str`): The command, one of `COMMANDS`.
        command: Its dataclass.

    Raises:
        ValueError: When the command would refuse its model or prompt set.
    """
    if name == "evaluate" and command.answers is not None:
        raise ValueError("got --dry-run with --answers; expected a model to measure; leave one of them out")
    whole = PromptSet.load(command.prompts)
    model, tokenizer = command.load()
    small = _small(whole, 2 * command.batch_size if isinstance(command.batch_size, int) else TRAIN_KEPT)
    # Without a cache: a dry run leaves no file behind.
    small = complete_responses(small, model, tokenizer, chat_template=command.chat_template)
    bench = Bench(command, model, tokenizer, whole, small)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    parts = tuple(COMMANDS[name](bench))
    return Estimate(name, str(model.device), parts, _peak(model.device))


def _tune(bench: Bench) -> Iterator[Part]:
    command = bench.command
    yield bench.evaluation("measuring", 2 + len(command.shares))
    roles = tuple(parse_counts(command.counts))
    part, scores = bench.attribution("scoring neurons", command.rounds, method=method_of(command), roles=roles)
    yield part
    yield bench.training("training scales", scores, command.rounds, config=command.training)
    if command.modulation == "dynamic":
        yield bench.trigger("fitting the trigger")


def _attribute(bench: Bench) -> Iterator[Part]:
    command = bench.command
    names = ("method", "roles", "batch_size", "steps", "start", "end", "joint", "n_prompts", "n_phrases", "seed")
    options = {name: getattr(command, name) for name in names}
    yield bench.attribution("scoring neurons", **options)[0]


def _evaluate(bench: Bench) -> Iterator[Part]:
    yield bench.evaluation("measuring", 1 if bench.command.adapter is None else 2)


def _compare(bench: Bench) -> Iterator[Part]:
    command = bench.command
    methods = resolve_methods({word.partition("=")[0]: "random" if "=" in word else word for word in command.methods})
    dials = {
        "strength": len(command.strengths),
        "multiplier": len(command.multipliers),
        "coefficient": len(command.coefficients),
    }
    runs = {name: command.seeds if method.seeded else 1 for name, method in methods.items()}
    rows = sum(runs[name] * (dials[method.dial] if method.dial else 1) for name, method in methods.items())
    yield bench.evaluation(f"measuring {rows} rows", rows, max_tests=command.max_tests)
    part, scores = bench.attribution("scoring neurons", len(methods), method=command.method)
    yield part
    with_scales = [name for name, method in methods.items() if method.dial == "strength"]
    trained = sum(runs[name] for name in with_scales)
    own = ("neurontune", "neurontune-dynamic")  # these take the given learning rate and try no other
    tries = sum(command.lr_tries - 1 for name in with_scales if name not in own)
    yield bench.training(f"{trained + tries} trainings", scores, trained + tries, config=command.training)


# What can be estimated: the command and its steps.
COMMANDS: Mapping[str, Callable[[Bench], Iterator[Part]]] = {
    "tune": _tune,
    "attribute": _attribute,
    "evaluate": _evaluate,
    "compare": _compare,
}


def _small(prompts: PromptSet, requests: int) -> PromptSet:
    """Evenly spread prompts: about as many test prompts as make so many requests, and a few train prompts."""
    tests = prompts.select(split="test")
    families = len(prompts.families(split="test"))
    asked = sum({"harmful": 1 + families, "benign": 2}.get(prompt.kind, 1) for prompt in tests)
    every = max(1, asked // max(1, requests))
    kept: set[str] = set()
    for kind in ("harmful", "benign", "borderline"):
        kept |= {prompt.id for prompt in prompts.select(split="test", kind=kind)[::every]}
        train = prompts.select(split="train", kind=kind)
        kept |= {prompt.id for prompt in train[:: max(1, ceil(len(train) / TRAIN_KEPT))]}
    attacks = tuple(attack for attack in prompts.attacks if attack.prompt_id is None or attack.prompt_id in kept)
    return replace(prompts, prompts=tuple(p for p in prompts.prompts if p.id in kept), attacks=attacks)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
