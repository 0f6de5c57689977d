"""Which neurons are worth training? The same short training on each method's top neurons and on random ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from neurontune_peft.checks import check_format_version, write_atomically
from neurontune_peft.evaluation.measure import evaluate
from neurontune_peft.evaluation.result import Rate, Report, mean_rate
from neurontune_peft.evaluation.trust.causality import random_seed
from neurontune_peft.evaluation.trust.interventions import attached
from neurontune_peft.evaluation.trust.rankings import top
from neurontune_peft.evaluation.trust.rows import Trained
from neurontune_peft.judges import Judge, judge_name
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.training import MetaConfig, meta_train
from neurontune_peft.tuner.fingerprint import fingerprint

ROWS_FORMAT_VERSION = 1


@dataclass(frozen=True)
class TrainingPlan:
    """
    The short trainings that tell which neurons are worth training.

    Args:
        shares (`tuple[float, ...]`, *optional*, defaults to `(0.01, 0.03, 0.12)`): Shares of all neurons.
        steps (`int`, *optional*, defaults to `60`): Steps of each training, without meta-learning.
        n_random (`int`, *optional*, defaults to `1`): Layer-matched random sets beside each row.
        n_prompts (`int`, *optional*): Test prompts of each kind to measure on; all by default.
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer when measuring.
        batch_size (`int`, *optional*, defaults to `64`): Requests answered at once when measuring.
        rows (`str` or `os.PathLike`, *optional*):
            JSON file of finished rows. It is written after every row, so that an interrupted run goes on there.

    Raises:
        ValueError: When a share is not between 0 and 1, or a number is too small.
    """

    shares: tuple[float, ...] = (0.01, 0.03, 0.12)
    steps: int = 60
    n_random: int = 1
    n_prompts: int | None = None
    max_new_tokens: int = 32
    batch_size: int = 64
    rows: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"got shares {self.shares}; expected numbers above 0, up to 1; use for example (0.03,)")
        for name, low in (("steps", 1), ("n_random", 0), ("max_new_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"got {name}={getattr(self, name)}; expected at least {low}; raise it")


@dataclass(frozen=True)
class _Candidate:
    method: str
    share: float
    control: int
    neurons: Neurons


def measure_trainability(
    model: nn.Module,
    tokenizer: Any,
    neurons: Neurons,
    by_method: Mapping[str, Scores],
    prompts: PromptSet,
    plan: TrainingPlan,
    *,
    role: str,
    seed: int,
    judge: Judge,
    chat_template: str | None,
) -> tuple[Trained, ...]:
    """
    Train the scales of every candidate in the same way, and measure them on held-out families.

    Args:
        model (`nn.Module`): A causal LM without adapters, held still.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        neurons ([`Neurons`]): The list, trained as it is.
        by_method (`Mapping[str, Scores]`): Scores of each method, cut at every share.
        prompts ([`PromptSet`]): Train prompts to train on, test prompts to measure on.
        plan ([`TrainingPlan`]): How much is trained and measured.
        role (`str`): The role.
        seed (`int`): Order of the training data, and the random sets.
        judge (`Callable`): Judge of the answers.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
    """
    candidates = list(_candidates(neurons, by_method, plan, role, seed))
    finished = _read(plan.rows)
    config = MetaConfig(order="none", steps=plan.steps, seed=seed)
    tests = _held_out_only(prompts, plan.n_prompts)
    common: dict[str, Any] = {
        "model": fingerprint(dict(model.named_parameters())),
        "prompts": [prompts.fingerprint, tests.fingerprint],
        "training": config.to_dict(),
        "measuring": [judge_name(judge), plan.max_new_tokens, read_template(chat_template)],
        "role": role,
    }
    rows = []
    for candidate in logging.tqdm(candidates, desc="short trainings", unit="training"):
        key = _key(common, candidate)
        if key not in finished:
            with attached(model, candidate.neurons, scale=1.0) as tuned:
                meta_train(tuned, tokenizer, prompts, config, chat_template=chat_template)
                report = evaluate(
                    tuned,
                    tokenizer,
                    tests,
                    judge=judge,
                    max_new_tokens=plan.max_new_tokens,
                    batch_size=plan.batch_size,
                    chat_template=chat_template,
                )
            finished[key] = asdict(_row(candidate, report))
            _write(plan.rows, finished)
        rows.append(Trained(**finished[key]))
    return tuple(rows)


def _candidates(
    neurons: Neurons, by_method: Mapping[str, Scores], plan: TrainingPlan, role: str, seed: int
) -> Iterator[_Candidate]:
    """The list and each method's top neurons, each followed by its random controls."""
    total = sum(neurons.widths.values())
    chosen = [("list", neurons.total / total, neurons)]
    for share in plan.shares:
        chosen += [
            (name, share, top(scores, role, max(1, round(share * total)))) for name, scores in by_method.items()
        ]
    for name, share, picked in chosen:
        if not picked.total:
            continue
        yield _Candidate(name, share, 0, picked)
        for number in range(1, plan.n_random + 1):
            yield _Candidate(name, share, number, picked.layer_matched_random(random_seed(seed, number)))


def _held_out_only(prompts: PromptSet, n_prompts: int | None) -> PromptSet:
    """The test prompts, at most so many of each kind, with the attacks of the held-out families."""
    tests = prompts.select(split="test")
    if n_prompts is not None:
        kinds = dict.fromkeys(prompt.kind for prompt in tests)
        tests = tuple(p for kind in kinds for p in prompts.select(kind=kind, split="test")[:n_prompts])
    ids = {prompt.id for prompt in tests}
    attacks = tuple(
        attack
        for attack in prompts.attacks
        if attack.family in prompts.held_out_families and (attack.prompt_id is None or attack.prompt_id in ids)
    )
    return replace(prompts, prompts=tests, attacks=attacks)


def _row(candidate: _Candidate, report: Report) -> Trained:
    return Trained(
        method=candidate.method,
        share=candidate.share,
        count=candidate.neurons.total,
        control=candidate.control,
        attack_success=mean_rate(report.attack_success_held_out),
        borderline_refusal=_share(report.borderline_refusal),
        wrapped_benign_refusal=_share(report.wrapped_benign_refusal),
        perplexity=report.perplexity,
        kl=report.kl,
    )


def _share(rate: Rate | None) -> float | None:
    return None if rate is None else rate.rate


def _pairs(neurons: Neurons) -> list[tuple[str, int]]:
    return sorted(pair for role in neurons.roles for pair in neurons.ranked(role))


def _key(common: Mapping[str, Any], candidate: _Candidate) -> str:
    """Everything that a row depends on, as a hash; the neurons without their order, which training ignores."""
    own = [candidate.method, candidate.share, candidate.control, _pairs(candidate.neurons)]
    return hashlib.sha256(json.dumps([common, own], sort_keys=True).encode()).hexdigest()


def _read(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    if path is None or not Path(path).exists():
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, rows = content["format_version"], dict(content["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"got '{path}' ({error}); expected a file of finished trainings; delete it or name another one"
        ) from error
    check_format_version(version, ROWS_FORMAT_VERSION, what=f"file of trainings '{path}'")
    return rows


def _write(path: str | os.PathLike[str] | None, rows: Mapping[str, Any]) -> None:
    if path is not None:
        content = {"format_version": ROWS_FORMAT_VERSION, "rows": rows}
        write_atomically(path, json.dumps(content, indent=1) + "\n")
