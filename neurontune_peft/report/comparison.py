"""Two reports in one JSON file, as `neurontune tune` writes them."""

from typing import Any

from neurontune_peft.evaluation import Report
from neurontune_peft.report.tables import summary

COMPARISON_FORMAT_VERSION = 1


def comparison_dict(before: Report, after: Report) -> dict[str, Any]:
    """
    Both reports as JSON types.

    Args:
        before (`Report`): The first report.
        after (`Report`): The second report.

    Returns:
        `dict[str, Any]`: `format_version`, `summary` (a sentence), `before` and `after` (as `Report.as_dict` gives).

    Raises:
        ValueError: When the reports come from different prompt sets, judges or options.
    """
    return {
        "format_version": COMPARISON_FORMAT_VERSION,
        "summary": summary(before, after),
        "before": before.as_dict(),
        "after": after.as_dict(),
    }
