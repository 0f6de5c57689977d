"""Pictures of a report for papers and cards. They need the `plot` extra; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurontune_peft.checks import write_atomically
from neurontune_peft.evaluation import Rate
from neurontune_peft.report.document import Document
from neurontune_peft.report.figures import COSTS, preset_names, widest_cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
BASE, TUNED, OTHER = "#9a5b00", "#0b63b6", "#556074"


def plot_families(document: Document) -> Figure:
    """
    Attack success per family with 95 % Wilson intervals, held-out families below those for training.

    Args:
        document ([`Document`]): What was measured.

    Returns:
        `matplotlib.figure.Figure`: The picture; `figure.savefig(path)` writes it.

    Raises:
        ValueError: When no attack was measured.
    """
    after = document.after
    families = [*after.attack_success_trained, *after.attack_success_held_out]
    if not families:
        raise ValueError("got a report without attacks; expected some; measure on a prompt set with attacks")
    figure = _figure(height=1.2 + 0.36 * len(families))
    axes = figure.add_subplot()
    for label, report, colour, shift in (("base", document.before, BASE, -0.14), ("tuned", after, TUNED, 0.14)):
        if report is not None:
            rates = [(place, report.attack_success.get(name)) for place, name in enumerate(families)]
            _rates(axes, [(place + shift, rate) for place, rate in rates if rate], label=label, colour=colour)
    marked = [f"{name} (held out)" if name in after.held_out else name for name in families]
    axes.set_yticks(range(len(families)), marked)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"attack success, % (judge: {after.judge})")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    return figure


def plot_frontier(document: Document) -> Figure:
    """
    Attack success over the cost that settings differ in most; presets and the certified setting are named.

    Args:
        document ([`Document`]): A report with a frontier.

    Returns:
        `matplotlib.figure.Figure`: The picture.

    Raises:
        ValueError: When the report has no frontier.
    """
    if not document.frontier:
        raise ValueError("got a report without a frontier; expected one; run neurontune sweep first")
    figure = _figure(height=4.2)
    axes = figure.add_subplot()
    names = preset_names(document.frontier, document.certificate)
    cost = widest_cost(document.frontier["points"])
    points = [
        (100 * float(x["value"]), 100 * float(y["value"]), bool(point.get("pareto")), ", ".join(names.get(place, [])))
        for place, point in enumerate(document.frontier["points"])
        if (x := point.get(cost)) and (y := point.get("attack_success"))
    ]
    front = sorted((x, y) for x, y, pareto, _ in points if pareto)
    axes.plot([x for x, _ in front], [y for _, y in front], "o--", color=TUNED, lw=1, label="Pareto")
    others = [(x, y) for x, y, pareto, _ in points if not pareto]
    axes.plot([x for x, _ in others], [y for _, y in others], "o", mfc="none", color=OTHER, label="other settings")
    for x, y, _, name in points:
        if name:
            axes.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points", weight="bold")
    axes.set_xlabel(f"{COSTS[cost]}, %")
    axes.set_ylabel(f"attack success, % (judge: {document.after.judge})")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def plot_layers(document: Document) -> Figure:
    """
    Scaled neurons by layer, one part of each bar for each role.

    Args:
        document ([`Document`]): A report with an adapter.

    Returns:
        `matplotlib.figure.Figure`: The picture.

    Raises:
        ValueError: When the report has no adapter.
    """
    if not document.adapter:
        raise ValueError("got a report without an adapter; expected one; run neurontune report on its directory")
    sites = document.adapter["sites"]
    figure = _figure(height=3.2, width=max(6.0, 0.3 * len(sites)))
    axes = figure.add_subplot()
    bottom = [0.0] * len(sites)
    for role in document.adapter["counts"]:
        heights = [float(site["roles"].get(role, {}).get("count", 0)) for site in sites]
        axes.bar(range(len(sites)), heights, bottom=bottom, label=role)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(sites)), [site["layer"] for site in sites], rotation=90 if len(sites) > 16 else 0)
    axes.set_xlabel("layer")
    axes.set_ylabel("scaled neurons")
    axes.legend()
    return figure


def write_pictures(document: Document, directory: Path) -> list[Path]:
    """
    Write every picture that the report has data for, as PNG and SVG.

    Args:
        document ([`Document`]): What to show.
        directory (`Path`): Where to.

    Returns:
        `list[Path]`: The files.

    Raises:
        ValueError: When matplotlib is not installed.
    """
    drawn: dict[str, Figure] = {}
    if document.after.attack_success:
        drawn["families"] = plot_families(document)
    if document.frontier:
        drawn["frontier"] = plot_frontier(document)
    if document.adapter:
        drawn["layers"] = plot_layers(document)
    written = []
    for name, figure in drawn.items():
        for ending in FORMATS:
            picture = io.BytesIO()
            # Without a date, the same report gives the same file.
            figure.savefig(picture, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
            written.append(directory / f"{name}.{ending}")
            write_atomically(written[-1], picture.getvalue())
    return written


def _rates(axes: Any, rates: list[tuple[float, Rate]], *, label: str, colour: str) -> None:
    values = [100 * rate.rate for _, rate in rates]
    spread = [
        [100 * (rate.rate - rate.low) for _, rate in rates],
        [100 * (rate.high - rate.rate) for _, rate in rates],
    ]
    style: Mapping[str, Any] = {"mfc": "white"} if label == "base" else {}
    axes.errorbar(values, [y for y, _ in rates], xerr=spread, fmt="o", color=colour, label=label, **style)


def _figure(*, height: float, width: float = 7.0) -> Figure:
    """An empty figure that no window and no global state knows of."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "got no matplotlib; expected it for pictures; install it with pip install neurontune-peft[plot]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
