"""Who protects best for what may be lost? A comparison with the controls, as Markdown."""

from collections.abc import Iterable, Sequence

from neurontune_peft.evaluation.compare import Comparison, Interval, Limits, Row
from neurontune_peft.evaluation.compare.points import (
    ATTACK_HELD_OUT,
    ATTACK_TRAINED,
    BENIGN,
    OVER_REFUSAL,
    WRAPPED,
)

COSTS = {OVER_REFUSAL: "borderline refused", BENIGN: "benign refused", WRAPPED: "wrapped benign refused"}
MEASURES = {ATTACK_HELD_OUT: "attack success, held-out", ATTACK_TRAINED: "attack success, train families", **COSTS}
NOTHING = "–"


def controls_markdown(comparison: Comparison) -> str:
    """
    Tables of a comparison: within the limits, as trained, at equal cost, and every setting.

    Args:
        comparison ([`Comparison`]): What was measured.

    Returns:
        `str`: Markdown, with how the choices were made and where a control does better.
    """
    limits = limits_text(comparison.limits)
    chosen = {name: comparison.within_limits(name) for name in comparison.methods}
    trained = {name: comparison.as_trained(name) for name in comparison.methods}
    parts = [
        "# Comparison with controls",
        verdict(comparison),
        "## Within the limits",
        f"For each method the setting of its dial with the lowest attack success at which, over the base model, "
        f"{limits}. The setting was chosen on these test prompts, which is optimistic, in the same way for every "
        "method.",
        _wide_table(comparison, chosen, against=comparison.within_limits(comparison.reference)),
        "## As trained",
        "Every dial where its method means it to be: strength 1, multiplier 2, coefficient 1.",
        _wide_table(comparison, trained, against=trained[comparison.reference]),
        "## At equal cost",
        *_equal_cost(comparison),
        "## Every setting",
        _table(
            ["method", "setting", *MEASURES.values(), "perplexity", "KL"],
            ([row.method, _setting(row), *_measures(row)] for row in comparison.rows),
        ),
        "## How to read this",
        *_notes(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(comparison: Comparison) -> str:
    """
    In one sentence: how the reference does within the limits, and which controls do better.

    Args:
        comparison ([`Comparison`]): What was measured.
    """
    own = comparison.within_limits(comparison.reference)
    base = comparison.as_trained("base")
    if own is None or own.attack is None or base.attack is None:
        return f"No setting of `{comparison.reference}` stays within the limits."
    rows = [comparison.within_limits(name) for name in comparison.methods if name != comparison.reference]
    better = [row for row in rows if row is not None and row.attack and row.attack.value < own.attack.value]
    names = ", ".join(f"`{row.method}` ({_percent(row.attack)})" for row in better)
    return (
        f"Within the limits, `{comparison.reference}` brings attack success from {_percent(base.attack)} to "
        f"{_percent(own.attack)}; " + (f"lower still: {names}." if better else "no control gets it lower.")
    )


def limits_text(limits: Limits) -> str:
    """
    The limits in words.

    Args:
        limits ([`Limits`]): What may be lost.
    """
    return (
        f"refusals of borderline requests rise by at most {100 * limits.over_refusal:g} points, of benign requests by "
        f"at most {100 * limits.benign_refusal:g}, of benign requests inside attack templates by at most "
        f"{100 * limits.wrapped_refusal:g}, and perplexity by at most {100 * limits.perplexity:g} %"
    )


def _wide_table(comparison: Comparison, rows: dict[str, Row | None] | dict[str, Row], *, against: Row | None) -> str:
    header = ["method", "setting", *MEASURES.values(), "perplexity", "KL", "numbers", "bytes", "time", "peak memory"]
    lines = []
    for name, row in rows.items():
        if row is None:
            lines.append([name, "no setting within the limits", *[NOTHING] * (len(header) - 1)])
            continue
        made = [f"{row.numbers:,}", f"{row.bytes:,}", f"{row.seconds:.3g} s", f"{row.peak_memory / 2**20:,.0f} MiB"]
        lines.append([name, _setting(row), *_measures(row), *made, _test(comparison, row, against)])
    return _table([*header, f"attack success of {comparison.reference} less this one's"], lines)


def _test(comparison: Comparison, row: Row, against: Row | None) -> str:
    if against is None or row.method == comparison.reference:
        return NOTHING
    found = comparison.test(row.method, row.setting, against=against.setting)
    counts = f"{found.better} : {found.worse} of {found.total}, p = {found.p:.2g}"
    if found.margin is None:
        return counts
    margin, low, high = (100 * value for value in (found.margin.value, found.margin.low, found.margin.high))
    return f"{margin:+.1f} points ({low:+.1f} to {high:+.1f}); {counts}"


def _equal_cost(comparison: Comparison) -> list[str]:
    row = comparison.compared_row()
    costs = {column: row.rates[column] for column in (OVER_REFUSAL, WRAPPED) if column in row.rates}
    header = ["method", *(f"attack success at {_percent(rate)} {COSTS[column]}" for column, rate in costs.items())]
    lines = [
        [name, *(_number(comparison.attack_at_equal_cost(name, column), ".1%") for column in costs)]
        for name in comparison.methods
    ]
    return [
        f"Lowest attack success of each method where it costs no more than `{row.method}` at setting {_setting(row)}, "
        "interpolated between its measured settings and the base model: between two settings, a share of the requests "
        f"can be served with either. {NOTHING}: every setting costs more.",
        _table(header, lines),
    ]


def _notes(comparison: Comparison) -> list[str]:
    options = comparison.options
    rates = {row.method: row.learning_rate for row in comparison.rows if row.learning_rate is not None}
    notes = {row.method: row.note for row in comparison.rows if row.note}
    found = [
        f"Medians over seeds {options.get('seeds', NOTHING)}; in brackets, 95 % bootstrap intervals over requests, "
        "which do not cover the choice of the setting. `a : b of n`: attacks that succeed against the other method "
        f"only, and against `{comparison.reference}` only, in at least half of the seeds, with an exact McNemar test; "
        "held-out families where there are some. Attacks on one request are not independent: take p-values as a "
        "guide.",
        "`numbers` are trained or computed from data. Peak memory is the high-water mark of the process up to then: "
        "it never falls from method to method. Time is one training with its scoring, without tried learning rates.",
        f"The judge is `{comparison.judge}`. {comparison.judge_limits}".rstrip(),
        "Learning rates: " + (", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()) or "none") + ". "
        f"All but that of `neurontune` were chosen from {options.get('lr_tries', NOTHING)} tries on held-back train "
        "prompts and templates.",
    ]
    return found + [f"`{name}`: {note}." for name, note in notes.items()]


def _measures(row: Row) -> list[str]:
    rates = [str(row.rates[column]) if column in row.rates else NOTHING for column in MEASURES]
    return [*rates, _number(row.perplexity, ".2f"), _number(row.kl, ".4f")]


def _setting(row: Row) -> str:
    return _number(row.setting, "g")


def _percent(rate: Interval | None) -> str:
    return NOTHING if rate is None else f"{rate.value:.1%}"


def _number(value: float | None, style: str) -> str:
    return NOTHING if value is None else format(value, style)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
