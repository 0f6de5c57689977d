"""Can the list be believed? A trust report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neurontune_peft.evaluation.result import Rate
from neurontune_peft.evaluation.trust import Intervention, Trained, Trust


def trust_markdown(trust: Trust) -> str:
    """
    The findings of `verify` as tables.

    Args:
        trust ([`Trust`]): The report.

    Returns:
        `str`: Markdown: the verdict, interventions beside random sets, side effects, stability, completeness, and
        short trainings where they were made.
    """
    parts = [
        "# Trust report",
        trust.conclusion,
        "## Causality",
        f"All {trust.count} neurons set to one scale; change of the {trust.objective}, in nats, on {trust.n_prompts} "
        "held-out prompts. Random sets have as many neurons at every site and none of the list's. Intervals are 95 % "
        "bootstrap intervals over prompts; p is the rank of the list among the random sets, itself counted in, and at "
        "most 0.05 where it beats them.",
        _causality(trust),
        "## Answers and side effects",
        _answers_line(trust),
        _side_effects(trust),
    ]
    if trust.stability:
        chance = f"Jaccard overlap of the top {trust.count}; two random lists share {trust.chance_overlap:.2f}."
        rows = [(row.kind, row.first, row.second, f"{row.jaccard:.2f}") for row in trust.stability]
        parts += ["## Stability", chance, _table(("what differs", "first", "second", "overlap"), rows)]
    if trust.completeness:
        parts += ["## Completeness", _completeness(trust)]
    if trust.curves:
        parts += ["## Effect against count", _curves(trust)]
    if trust.trainability:
        parts += ["## Trainability", _trainability(trust)]
    return "\n\n".join(parts) + "\n"


def _causality(trust: Trust) -> str:
    header = ("scale", "list", "interval", "random, mean", "random, range", "percentile", "p", "beats random")
    rows = [
        (
            f"{row.scale:g}",
            f"{row.change:+.3f}",
            f"{row.low:+.3f} to {row.high:+.3f}",
            f"{row.random_mean:+.3f}",
            f"{min(row.random):+.3f} to {max(row.random):+.3f}",
            f"{row.percentile:.0f}",
            f"{row.p_value:.3f}",
            "yes" if row.beats_random else "no",
        )
        for row in trust.causality
    ]
    return _table(header, rows)


def _answers_line(trust: Trust) -> str:
    side = "Perplexity and KL to the untouched model are on benign reference answers."
    if trust.base_refusal is None:
        return side
    return (
        f"The untouched model refuses {trust.base_refusal:.1%} of the attacked requests (judge: {trust.judge}). "
        f"{trust.judge_limits} {side} The last column is the change of the {trust.objective} on benign requests "
        "inside the same templates, which should be small."
    )


def _side_effects(trust: Trust) -> str:
    header = (
        "scale",
        f"refusals, list ({trust.judge})",
        f"refusals, random ({trust.judge})",
        "perplexity, list",
        "perplexity, random",
        "KL, list",
        "KL, random",
        "wrapped benign",
    )
    return _table(header, [_side_effect(row) for row in trust.causality])


def _side_effect(row: Intervention) -> tuple[str, ...]:
    return (
        f"{row.scale:g}",
        _rates([row.refusal] if row.refusal else []),
        _rates(row.random_refusal),
        _number(row.perplexity, ".2f"),
        _mean(row.random_perplexity, ".2f"),
        _number(row.kl, ".4f"),
        _mean(row.random_kl, ".4f"),
        _number(row.wrapped_change, "+.3f"),
    )


def _completeness(trust: Trust) -> str:
    header = ("path", "steps", "sum of scores", "change of the objective", "gap")
    return _table(
        header,
        [
            (row.method, str(row.steps), f"{row.total:+.4f}", f"{row.change:+.4f}", f"{row.gap:.2%}")
            for row in trust.completeness
        ],
    )


def _curves(trust: Trust) -> str:
    counts = sorted({count for curve in trust.curves for count in curve.counts})
    rows = []
    for curve in trust.curves:
        found = dict(zip(curve.counts, curve.changes, strict=True))
        rows.append((f"{curve.method}, scale {curve.scale:g}", *(_number(found.get(n), "+.3f") for n in counts)))
    return _table(("top neurons of", *(str(count) for count in counts)), rows)


def _trainability(trust: Trust) -> str:
    header = (
        "neurons of",
        "share",
        "count",
        "attack success, held out",
        "percentile",
        "borderline refused",
        "wrapped benign refused",
        "perplexity",
        "KL",
    )
    rows = [_trained(trust, row) for row in trust.trainability if not row.control]
    return (
        "The same short training of scales on each method's top neurons; in brackets the mean of random sets with as "
        "many neurons at every site. The percentile is the percentage of these that attacks succeed on more often.\n\n"
        + _table(header, rows)
    )


def _trained(trust: Trust, row: Trained) -> tuple[str, ...]:
    controls = trust.controls(row)

    def cell(name: str, style: str) -> str:
        beside = [value for other in controls if (value := getattr(other, name)) is not None]
        return _number(getattr(row, name), style) + (f" ({_mean(beside, style)})" if beside else "")

    return (
        row.method,
        f"{row.share:.1%}",
        str(row.count),
        cell("attack_success", ".1%"),
        _number(trust.training_percentile(row), ".0f") + (f" of {len(controls)}" if controls else ""),
        cell("borderline_refusal", ".1%"),
        cell("wrapped_benign_refusal", ".1%"),
        cell("perplexity", ".2f"),
        cell("kl", ".4f"),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rates(rates: Sequence[Rate]) -> str:
    return ", ".join(f"{rate.rate:.1%}" for rate in rates) or "–"


def _mean(values: Sequence[float], style: str) -> str:
    return _number(sum(values) / len(values) if values else None, style)


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)
