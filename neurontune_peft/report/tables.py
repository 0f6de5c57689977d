"""What changed? Two reports side by side, as Markdown."""

from collections.abc import Iterable, Mapping

from neurontune_peft.evaluation import Rate, Report
from neurontune_peft.evaluation.result import mean_rate

Row = tuple[str, str, str, str]


def compare_markdown(before: Report, after: Report) -> str:
    """
    Tables of two reports on the same prompt set, for example before and after tuning.

    Args:
        before (`Report`): The first report.
        after (`Report`): The second report.

    Returns:
        `str`: Markdown: attack success per family (those for training and held-out ones apart), refusals of plain and
            harmless requests, perplexity and KL, and what the judge cannot see. Intervals are 95 % Wilson intervals.

    Raises:
        ValueError: the reports come from different prompt sets, judges or options.
    """
    _check_comparable(before, after)
    judge = f"(judge: {before.judge})"
    parts = [
        "## Attack success",
        "Share of attacked harmful requests that are not refused; test templates. Lower is safer.",
        _table(f"family {judge}", _family_rows(before.attack_success_trained, after.attack_success_trained)),
        "Held-out families: no template of them is for training.",
        _table(
            f"held-out family {judge}",
            _family_rows(before.attack_success_held_out, after.attack_success_held_out, mark=" (held out)"),
        ),
        f"Mean over all {len(before.attack_success)} families: {_mean(before)} before, {_mean(after)} after.",
        "With the templates for training:",
        _table(
            f"family, train templates {judge}",
            _family_rows(before.attack_success_train_templates, after.attack_success_train_templates),
        ),
        "## Refusals",
        "Plain harmful requests should be refused, the others answered.",
        _table(f"requests {judge}", _refusal_rows(before, after)),
        "## Utility",
        _table("on benign reference answers (no judge)", _utility_rows(before, after)),
        _judge_line(before, after),
    ]
    return "\n\n".join(parts) + "\n"


def counts_markdown(by_share: Mapping[float, Report], base: Report) -> str:
    """
    What the first part of each role's ranking achieves alone.

    Args:
        by_share (`Mapping[float, Report]`): Share of the counts, 0 to 1, to its report.
        base (`Report`): The base model.

    Returns:
        `str`: Markdown; a row for the base model and for each share.
    """
    header = ["share of the neurons", "attack success, training families", "held-out families", "borderline refused"]
    header += ["benign refused", "benign inside templates refused", "perplexity"]
    rows = [("0", base), *((f"{share:g}", report) for share, report in sorted(by_share.items()))]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for share, report in rows:
        means = (mean_rate(report.attack_success_trained), mean_rate(report.attack_success_held_out))
        refused = (report.borderline_refusal, report.benign_refusal, report.wrapped_benign_refusal)
        cells = [share, *map(_percent, means), *map(_cell, refused), _number(report.perplexity, ".2f")]
        lines.append("| " + " | ".join(cells) + " |")
    return "## Neuron counts\n\n" + "\n".join(lines) + f"\n\nMeans over families (judge: {base.judge}).\n"


def summary(before: Report, after: Report) -> str:
    """
    The outcome in one sentence.

    Args:
        before (`Report`): The first report.
        after (`Report`): The second report.

    Returns:
        `str`: Mean attack success, held-out families apart, and what it costs.

    Raises:
        ValueError: the reports come from different prompt sets, judges or options.
    """
    _check_comparable(before, after)
    held_out = [mean_rate(report.attack_success_held_out) for report in (before, after)]
    aside = "" if None in held_out else f" (held-out families: {_percent(held_out[0])} to {_percent(held_out[1])})"
    costs = [
        f"refusals of {name} from {_percent(first.rate)} to {_percent(second.rate)}"
        for name, first, second in (
            ("borderline requests", before.borderline_refusal, after.borderline_refusal),
            ("benign requests", before.benign_refusal, after.benign_refusal),
            ("benign requests inside templates", before.wrapped_benign_refusal, after.wrapped_benign_refusal),
        )
        if first and second
    ]
    if before.perplexity is not None and after.perplexity is not None:
        costs.append(f"perplexity from {before.perplexity:.2f} to {after.perplexity:.2f}")
    return (
        f"Attack success went from {_mean(before)} to {_mean(after)} on average over {len(before.attack_success)} "
        f"families{aside}{'; ' if costs else ''}{', '.join(costs)} (judge: {before.judge})."
    )


def _check_comparable(before: Report, after: Report) -> None:
    for name in ("prompt_set", "judge"):
        first, second = getattr(before, name), getattr(after, name)
        if first != second:
            raise ValueError(
                f"got reports with {name} {first!r} and {second!r}; expected the same in both; measure both models "
                "in the same way"
            )
    for name in ("max_new_tokens", "chat_template"):
        first, second = before.options.get(name), after.options.get(name)
        if first != second:
            raise ValueError(
                f"got reports with {name} {first!r} and {second!r}; expected the same in both; measure both models "
                "in the same way"
            )


def _table(title: str, rows: Iterable[Row]) -> str:
    lines = [_line((title, "before", "after", "change")), "|---|---|---|---|", *(_line(row) for row in rows)]
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def _line(cells: Row) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _family_rows(before: Mapping[str, Rate], after: Mapping[str, Rate], *, mark: str = "") -> list[Row]:
    rows = [_rate_row(name + mark, before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))]
    if len(rows) > 1:
        first, second = mean_rate(before), mean_rate(after)
        rows.append(("**mean**", _percent(first), _percent(second), points_text(first, second)))
    return rows


def _refusal_rows(before: Report, after: Report) -> list[Row]:
    rows = [_rate_row("plain harmful", before.plain_refusal, after.plain_refusal)]
    first, second = before.plain_refusal_by_source, after.plain_refusal_by_source
    sources = dict.fromkeys((*first, *second))
    rows += [_rate_row(f"plain harmful, {name}", first.get(name), second.get(name)) for name in sources]
    rows.append(_rate_row("benign", before.benign_refusal, after.benign_refusal))
    rows.append(_rate_row("borderline (safe, sounds dangerous)", before.borderline_refusal, after.borderline_refusal))
    wrapped = (before.wrapped_benign_refusal, after.wrapped_benign_refusal)
    rows.append(_rate_row("benign inside test templates", *wrapped))
    return rows


def _utility_rows(before: Report, after: Report) -> list[Row]:
    change = "–"
    if before.perplexity is not None and after.perplexity is not None:
        change = f"{after.perplexity / before.perplexity - 1:+.1%}"
    return [
        ("perplexity per token", _number(before.perplexity, ".2f"), _number(after.perplexity, ".2f"), change),
        ("KL(base, model), nats per token", _number(before.kl, ".4f"), _number(after.kl, ".4f"), "–"),
    ]


def rate_change(before: Rate | None, after: Rate | None) -> str:
    """
    The change of a rate, in points of a hundred.

    Args:
        before (`Rate`, *optional*): The first rate.
        after (`Rate`, *optional*): The second rate.
    """
    return points_text(before.rate if before else None, after.rate if after else None)


def _rate_row(name: str, before: Rate | None, after: Rate | None) -> Row:
    return name, _cell(before), _cell(after), rate_change(before, after)


def _cell(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate}, {rate.successes}/{rate.total}"


def _judge_line(before: Report, after: Report) -> str:
    unscored = before.unscored + after.unscored
    counted = f" {unscored} answers that it could not tell about are left out." if unscored else ""
    return f"The judge is `{before.judge}`. {before.judge_limits}".rstrip() + counted


def _mean(report: Report) -> str:
    return _percent(report.attack_success_mean)


def _percent(value: float | None) -> str:
    return _number(value, ".1%")


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)


def points_text(before: float | None, after: float | None) -> str:
    """
    A change of a share, in points of a hundred.

    Args:
        before (`float`, *optional*): The first share, 0 to 1.
        after (`float`, *optional*): The second share.
    """
    return "–" if before is None or after is None else f"{100 * (after - before):+.1f} points"
