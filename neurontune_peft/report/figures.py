"""Where do the marks of the page's pictures stand? Geometry only; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neurontune_peft.evaluation import Rate, Report
from neurontune_peft.report.settings import setting_text

WIDTH = 720.0
LABELS = 210.0  # width of the column of names
RIGHT = 56.0  # room for the figure behind the last mark
ROW = 34.0
PLOT_HEIGHT = 300.0
MOST_BARS = 200
COSTS = {
    "over_refusal": "over-refusal",
    "wrapped_benign_refusal": "benign requests inside templates refused",
    "benign_refusal": "benign requests refused",
}


def families_figure(before: Report | None, after: Report, *, held_out: bool) -> dict[str, Any] | None:
    """
    Attack success per family: a hollow mark for the base model, a filled one for the tuned, each with its interval.

    Args:
        before (`Report`, *optional*): The base model.
        after (`Report`): The tuned model.
        held_out (`bool`): The held-out families, or those for training.

    Returns:
        `dict`, *optional*: Geometry of `rates_figure`; `None` where nothing was measured.
    """
    name = "attack_success_held_out" if held_out else "attack_success_trained"
    first = {} if before is None else getattr(before, name)
    second = getattr(after, name)
    return rates_figure([(key, first.get(key), second.get(key)) for key in dict.fromkeys((*first, *second))])


def rates_figure(rows: Sequence[tuple[str, Rate | None, Rate | None]]) -> dict[str, Any] | None:
    """
    Rates side by side, one row each, on an axis from 0 to 100 %.

    Args:
        rows (`Sequence[tuple[str, Rate | None, Rate | None]]`): Name, base model, tuned model.

    Returns:
        `dict`, *optional*: `width`, `height`, `ticks` and `rows`; `None` without rows.
    """
    if not rows:
        return None
    bottom = ROW * len(rows) + 8
    return {
        "width": WIDTH,
        "height": bottom + 22,
        "bottom": bottom,
        "ticks": [{"x": _share_x(share), "text": f"{share:.0%}"} for share in (0, 0.25, 0.5, 0.75, 1.0)],
        "rows": [
            {"name": name, "y": 4 + ROW * (place + 0.5), "base": _mark(base), "tuned": _mark(tuned)}
            for place, (name, base, tuned) in enumerate(rows)
        ],
    }


def _mark(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    x, low, high = (_share_x(share) for share in (rate.rate, rate.low, rate.high))
    return {"x": x, "low": low, "high": high, "text": str(rate)}


def _share_x(share: float) -> float:
    return round(LABELS + share * (WIDTH - LABELS - RIGHT), 1)


def frontier_figure(
    frontier: Mapping[str, Any], certificate: Mapping[str, Any] | None, *, cost: str | None = None
) -> dict[str, Any] | None:
    """
    Every setting of the dial: attack success over a cost, Pareto points joined, presets and the certified one named.

    Args:
        frontier (`Mapping[str, Any]`): What `Frontier.as_dict` gives.
        certificate (`Mapping[str, Any]`, *optional*): What `Certificate.as_dict` gives.
        cost (`str`, *optional*): The rate on the horizontal axis; by default the one that settings differ in most.

    Returns:
        `dict`, *optional*: `width`, `height`, ticks of both axes, `points` and the Pareto `line`; `None` where no
            setting has both rates.
    """
    cost = widest_cost(frontier["points"]) if cost is None else cost
    measured = [point for point in frontier["points"] if point.get(cost) and point.get("attack_success")]
    if not measured:
        return None
    x_low, x_top = cost_axis([float(point[cost]["value"]) for point in measured])
    y_top = nice_top(max(float(point["attack_success"]["value"]) for point in measured))
    left, right, top, bottom = 64.0, WIDTH - 24, 16.0, PLOT_HEIGHT
    names = preset_names(frontier, certificate)
    points: list[dict[str, Any]] = []
    for place, point in enumerate(frontier["points"]):
        if point not in measured:
            continue
        x, y = float(point[cost]["value"]), float(point["attack_success"]["value"])
        points.append(
            {
                "x": round(left + (x - x_low) / (x_top - x_low) * (right - left), 1),
                "y": round(bottom - y / y_top * (bottom - top), 1),
                "pareto": bool(point.get("pareto")),
                "names": ", ".join(names.get(place, [])),
                "certified": "certified" in names.get(place, []),
                "text": f"{setting_text(point)}: attack success {y:.1%}, {COSTS[cost]} {x:.1%}",
            }
        )
    front = sorted((point["x"], point["y"]) for point in points if point["pareto"])
    return {
        "width": WIDTH,
        "height": PLOT_HEIGHT + 48,
        "left": left,
        "right": right,
        "bottom": bottom,
        "x_ticks": [
            {"at": round(left + s * (right - left), 1), "text": f"{100 * (x_low + s * (x_top - x_low)):.4g}"}
            for s in _QUARTERS
        ],
        "y_ticks": [{"at": round(bottom - s * (bottom - top), 1), "text": f"{100 * s * y_top:g}"} for s in _QUARTERS],
        "points": _spread_labels(points),
        "line": " ".join(f"{x},{y}" for x, y in front),
    } | {"x_label": f"{COSTS[cost]}, %", "y_label": "attack success, %"}


_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def nice_top(value: float) -> float:
    """The end of an axis, a share: 5, 10, 20, 40, 60, 80 or 100 %."""
    return next((top for top in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if value <= top), 1.0)


def cost_axis(values: Sequence[float]) -> tuple[float, float]:
    """Both ends of the axis of a cost, as shares; costs that all lie high and close together fill the picture."""
    low, high = min(values), max(values)
    if low < 0.5 * high or high == 0:
        return 0.0, nice_top(high)
    start = math.floor(low * 20 - 1e-9) / 20
    return max(0.0, start), max(math.ceil(high * 20 + 1e-9) / 20, start + 0.05)


def preset_names(frontier: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[int, list[str]]:
    """The names of each point: its presets, and `certified` for the setting of the certificate."""
    names: dict[int, list[str]] = {}
    for name, place in (frontier.get("presets") or {}).items():
        if place is not None:
            names.setdefault(int(place), []).append(str(name))
    setting = certificate and certificate.get("setting")
    for place, point in enumerate(frontier["points"]):
        if setting and all(point.get(dial) == setting.get(dial) for dial in ("strength", "counts", "threshold")):
            names.setdefault(place, []).append("certified")
    return names


def widest_cost(points: Sequence[Mapping[str, Any]]) -> str:
    """The cost that the settings differ in most; over-refusal where they differ in none."""

    def spread(cost: str) -> float:
        values = [float(point[cost]["value"]) for point in points if point.get(cost)]
        return max(values) - min(values) if values else -1.0

    return max(COSTS, key=spread)


def _spread_labels(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels stand beside their marks; those that would lie on each other are moved up, line by line."""
    taken: list[tuple[float, float]] = []
    for point in points:
        left = point["x"] > WIDTH - 200
        x, y = point["x"] + (-14 if left else 14), point["y"] + 4
        if point["names"]:
            while any(abs(x - other_x) < 150 and abs(y - other_y) < 14 for other_x, other_y in taken):
                y -= 15
            taken.append((x, y))
        point |= {"label_x": round(x, 1), "label_y": round(y, 1), "anchor": "end" if left else "start"}
    return points


def layers_figure(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """
    Neurons by layer: a bar for each site, one part for each role.

    Args:
        adapter (`Mapping[str, Any]`): What `adapter_part` gives.

    Returns:
        `dict`: `width`, `height`, `bars` (each with its `parts`), `roles` and ticks.
    """
    sites = adapter["sites"][:MOST_BARS]
    roles = list(adapter["counts"])
    counts = [{role: int(part["count"]) for role, part in site["roles"].items()} for site in sites]
    top = max([sum(count.values()) for count in counts], default=1) or 1
    left, right, bottom = 56.0, WIDTH - 8, 200.0
    step = (right - left) / max(1, len(sites))
    bars = []
    for place, (site, count) in enumerate(zip(sites, counts, strict=True)):
        parts, y = [], bottom
        for role in roles:
            height = round(count.get(role, 0) / top * (bottom - 20), 1)
            y = round(y - height, 1)
            parts.append({"role": roles.index(role), "y": y, "height": height})
        text = ", ".join(f"{number} {role}" for role, number in count.items()) or "none"
        width = round(min(48.0, step * 0.7), 1)
        x = round(left + step * (place + 0.5) - width / 2, 1)
        bars.append({"x": x, "width": width, "parts": parts, "text": f"layer {site['layer']}: {text}"})
        shown = len(sites) <= 32 or place % (len(sites) // 16) == 0
        bars[-1] |= {"middle": round(x + width / 2, 1), "label": str(site["layer"])[-12:] if shown else ""}
    ticks = [{"at": round(bottom - s * (bottom - 20), 1), "text": f"{s * top:g}"} for s in (0.0, 0.5, 1.0)]
    return {"width": WIDTH, "height": bottom + 42, "left": left, "right": right, "bottom": bottom} | {
        "bars": bars,
        "roles": roles,
        "ticks": ticks,
    }
