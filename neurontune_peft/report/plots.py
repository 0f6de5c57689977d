"""Pictures of scores and trust reports. They need the `plot` extra; matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from neurontune_peft.evaluation.trust import Trust
from neurontune_peft.neurons import Neurons, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_scores(scores: Scores, *, role: str = "safety", neurons: Neurons | None = None) -> Figure:
    """
    Scores by layer: quartiles, the 1st to 99th percentile and the highest score of every site.

    Args:
        scores ([`Scores`]): The scores.
        role (`str`, *optional*, defaults to `"safety"`): The role.
        neurons ([`Neurons`], *optional*): Selected neurons, counted by site in a second picture below.

    Returns:
        `matplotlib.figure.Figure`: The picture; `figure.savefig(path)` writes it.

    Raises:
        ValueError: When the role was not scored.
    """
    if role not in scores.values:
        raise ValueError(f"got role '{role}'; expected one of {list(scores.roles)}; name one of them")
    sites = list(scores.values[role])
    figure, axes = _figure(rows=1 if neurons is None else 2, width=max(6.0, 0.35 * len(sites)))
    values = [scores.values[role][site].float() for site in sites]
    places = range(len(sites))
    boxes = [_box(site) for site in values]
    axes[0].bxp(boxes, positions=list(places), showfliers=False)
    axes[0].plot(places, [float(site.max()) for site in values], "o", markersize=3, label="highest")
    axes[0].set_ylabel(f"score, {role}")
    axes[0].legend()
    if neurons is not None:
        counts = neurons.counts.get(role, {})
        axes[1].bar(places, [counts.get(site, 0) for site in sites])
        axes[1].set_ylabel("selected")
    axes[-1].set_xticks(list(places), [_layer(site) for site in sites], rotation=90 if len(sites) > 16 else 0)
    axes[-1].set_xlabel("layer")
    return figure


def plot_curves(trust: Trust) -> Figure:
    """
    Effect against count: how the objective changes when more and more top neurons of each method are amplified.

    Args:
        trust ([`Trust`]): A report with curves.

    Returns:
        `matplotlib.figure.Figure`: The picture.

    Raises:
        ValueError: When the report has no curves.
    """
    if not trust.curves:
        raise ValueError("got a report without curves; expected some; verify with methods to compare")
    figure, (axes,) = _figure()
    for curve in trust.curves:
        style = {"linestyle": "--", "color": "gray"} if curve.method == "random" else {}
        axes.plot(curve.counts, curve.changes, marker="o", markersize=3, label=curve.method, **style)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlabel("top neurons")
    axes.set_ylabel(f"change of the {trust.objective} (nats), scale {trust.curves[0].scale:g}")
    axes.legend()
    return figure


def plot_interventions(trust: Trust) -> Figure:
    """
    The list beside its layer-matched random sets, for every scale.

    Args:
        trust ([`Trust`]): The report.

    Returns:
        `matplotlib.figure.Figure`: The picture.
    """
    figure, (axes,) = _figure()
    for place, row in enumerate(trust.causality):
        label = {"label": "random sets"} if place == 0 else {}
        axes.plot([place] * len(row.random), row.random, "_", color="gray", **label)
        spread = [[max(0.0, row.change - row.low)], [max(0.0, row.high - row.change)]]
        label = {"label": "list"} if place == 0 else {}
        axes.errorbar([place], [row.change], yerr=spread, fmt="o", color="C0", capsize=3, **label)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(trust.causality)), [f"{row.scale:g}" for row in trust.causality])
    axes.set_xlabel("scale of the neurons")
    axes.set_ylabel(f"change of the {trust.objective} (nats)")
    axes.legend()
    return figure


def _figure(*, rows: int = 1, width: float = 6.0) -> tuple[Figure, list[Any]]:
    """An empty figure that no window and no global state knows of, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.0 + 1.2 * rows), layout="constrained")
    ratios = [3.0, 1.0][:rows]
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    return figure, list(axes[:, 0])


def _box(values: torch.Tensor) -> dict[str, Any]:
    """What a box shows of `(F,)` scores; a million of them are not handed to matplotlib."""
    ordered = values.sort().values
    places = [round(share * (len(ordered) - 1)) for share in (0.01, 0.25, 0.5, 0.75, 0.99)]
    low, first, middle, third, high = (float(ordered[place]) for place in places)
    return {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high}


def _layer(site: str) -> str:
    """The first number in a site's path; the path itself without one."""
    return next((part for part in site.split(".") if part.isdigit()), site)
