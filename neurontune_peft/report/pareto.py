"""Where does each method lie between attack success and its costs? The frontiers, as a picture."""

import io
import os
from pathlib import Path
from typing import Any

from neurontune_peft.checks import write_atomically
from neurontune_peft.choices import OVER_REFUSAL, WRAPPED
from neurontune_peft.evaluation.compare import Comparison

PANELS = {OVER_REFUSAL: "borderline requests refused", WRAPPED: "benign requests inside templates refused"}


def pareto_plot(comparison: Comparison, path: str | os.PathLike[str] | None = None) -> Any:
    """
    Attack success over over-refusal and over wrapped-benign refusal: a line per method through its settings.

    Args:
        comparison ([`Comparison`]): What was measured.
        path (`str` or `os.PathLike`, *optional*): Where to write the picture; its ending decides the format.

    Returns:
        `matplotlib.figure.Figure`: The figure.

    Raises:
        ImportError: When matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "got no matplotlib; expected it for plots; install it with pip install neurontune-peft[plot]"
        ) from error
    figure = Figure(figsize=(11, 5), layout="constrained")
    for place, column in enumerate(PANELS, start=1):
        _panel(comparison, figure.add_subplot(1, len(PANELS), place), column)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    if path is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format=Path(path).suffix.removeprefix(".") or "png", dpi=150)
        write_atomically(path, picture.getvalue())
    return figure


def _panel(comparison: Comparison, axes: Any, column: str) -> None:
    base = comparison.as_trained("base")
    for name in comparison.methods:
        own = [row for row in comparison.rows if row.method == name]
        # A dial at its lower end is the base model, so frontiers begin there.
        rows = [base, *own] if len(own) > 1 else own
        points = [(row.rates[column].value, row.attack.value) for row in rows if column in row.rates and row.attack]
        width = 2.5 if name == comparison.reference else 1.2
        axes.plot([100 * x for x, _ in points], [100 * y for _, y in points], "o-", label=name, lw=width, ms=3 * width)
    if column in base.rates:
        limit = base.rates[column].value + getattr(comparison.limits, column)
        axes.axvline(100 * limit, color="grey", ls=":", lw=1)
    axes.set_xlabel(f"{PANELS[column]}, %")
    axes.set_ylabel(f"attack success, % (judge: {comparison.judge})")
    axes.set_ylim(bottom=0)
