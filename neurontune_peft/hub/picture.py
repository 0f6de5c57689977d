"""The picture of a frontier on the card."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MAX_PICTURE = 5_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


def frontier_picture(directory: Path, name: str, frontier: Mapping[str, Any]) -> bytes | None:
    """
    The picture beside an adapter, or one drawn from its frontier.

    Args:
        directory (`Path`): The adapter's directory.
        name (`str`): Name of the picture there.
        frontier (`Mapping[str, Any]`): `points` and `presets`; may be empty.

    Returns:
        `bytes` or `None`: A PNG; `None` without a picture, and without points to draw or matplotlib to draw them.

    Raises:
        ValueError: When the file is no PNG, or has more than 5 MB.
    """
    path = directory / name
    if path.is_file():
        if path.stat().st_size > MAX_PICTURE or not (content := path.read_bytes()).startswith(_PNG):
            raise ValueError(
                f"got '{name}', which is no PNG of at most {MAX_PICTURE:,} bytes; expected one; replace it"
            )
        return content
    points = [p for p in frontier.get("points") or [] if p.get("attack_success") and p.get("over_refusal")]
    if len(points) < 2 or find_spec("matplotlib") is None:
        return None
    return _drawn(points, frontier.get("presets") or {})


def _drawn(points: list[Mapping[str, Any]], presets: Mapping[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for pareto, style in ((False, "o"), (True, "o-")):
        chosen = [p for p in points if bool(p.get("pareto")) == pareto]
        places = sorted((100 * p["over_refusal"]["value"], 100 * p["attack_success"]["value"]) for p in chosen)
        if places:
            label = "best trade-offs" if pareto else "other settings"
            axes.plot(*zip(*places, strict=True), style, label=label, alpha=1.0 if pareto else 0.4)
    for preset, at in presets.items():
        if type(at) is int and at < len(points):
            place = (100 * points[at]["over_refusal"]["value"], 100 * points[at]["attack_success"]["value"])
            axes.annotate(str(preset), place, textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("borderline requests refused, %")
    axes.set_ylabel("attack success, %")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
