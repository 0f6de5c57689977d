"""The evaluation as metadata of a card: the `model-index` that the Hub reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult

from neurontune_peft.evaluation import Rate, Report
from neurontune_peft.evaluation.result import mean_rate

_RATES = {
    "plain_refusal": "plain harmful requests refused (higher is better)",
    "borderline_refusal": "borderline requests refused (lower is better)",
    "benign_refusal": "benign requests refused (lower is better)",
    "wrapped_benign_refusal": "benign requests inside attack templates refused (lower is better)",
}


def eval_results(before: Report, after: Report) -> list[EvalResult]:
    """
    Every measure of the tuned model, with the base model's beside it.

    Args:
        before ([`Report`]): The base model.
        after ([`Report`]): The tuned model.

    Returns:
        `list[EvalResult]`: One result per measure; rates from 0 to 1, their intervals, numbers of answers and the base
            model's value in `metric_args`.
    """
    common: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "Resistance to jailbreaks",
        "dataset_type": "neurontune-prompt-set",
        "dataset_name": f"neurontune prompt set {after.prompt_set[:12]}",
        "dataset_split": "test",
    }
    return [
        EvalResult(**common, metric_type=kind, metric_name=name, metric_value=value, metric_args=args or None)
        for kind, name, value, args in _measures(before, after)
    ]


def _measures(before: Report, after: Report) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    judge = {"judge": after.judge}
    for name, part in (("trained", "training families"), ("held_out", "held-out families")):
        old, new = (mean_rate(getattr(report, f"attack_success_{name}")) for report in (before, after))
        if new is not None:
            yield "attack_success_rate", f"attack success, mean of {part}", new, {"base_model": old, **judge}
    for family, rate in after.attack_success.items():
        held = " (held out)" if family in after.held_out else ""
        args = _args(before.attack_success.get(family), rate) | judge
        yield "attack_success_rate", f"attack success, {family}{held}", round(rate.rate, 4), args
    for field, title in _RATES.items():
        if (measured := getattr(after, field)) is not None:
            args = _args(getattr(before, field), measured) | judge
            yield "refusal_rate", title, round(measured.rate, 4), args
    if after.perplexity is not None:
        base = None if before.perplexity is None else round(before.perplexity, 4)
        yield "perplexity", "perplexity of benign answers", round(after.perplexity, 4), {"base_model": base}
    if after.kl is not None:
        yield "kl_divergence", "KL(base, tuned) on benign answers, nats per token", round(after.kl, 6), {}


def _args(before: Rate | None, after: Rate) -> dict[str, Any]:
    known = after.as_dict()
    base = {} if before is None else {"base_model": round(before.rate, 4)}
    return {**base, "low": known["low"], "high": known["high"], "n": known["total"]}
