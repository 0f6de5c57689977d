"""Selected neurons as text: the JSON of their files, and a histogram drawn in lines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from neurontune_peft.checks import check_format_version

NEURONS_FORMAT_VERSION = 1
BAR_LENGTH = 40  # characters of a histogram's longest bar


def write_json(rankings: Mapping[str, Sequence[tuple[str, int]]], widths: Mapping[str, int]) -> str:
    """Sites with widths, and per role `[site number, index]` pairs, best first; one line, without spaces."""
    number = {site: position for position, site in enumerate(widths)}
    roles = {role: [[number[site], index] for site, index in ranked] for role, ranked in rankings.items()}
    content = {"format_version": NEURONS_FORMAT_VERSION, "sites": list(widths.items()), "roles": roles}
    return json.dumps(content, separators=(",", ":")) + "\n"


def read_json(text: str, *, source: str) -> tuple[dict[str, list[tuple[str, int]]], dict[str, int]]:
    """
    The rankings and widths that [`write_json`] wrote.

    Raises:
        ValueError: When the text is something else, or of a newer format; names the source.
    """
    try:
        content = json.loads(text)
        version, sites, roles = content["format_version"], content["sites"], content["roles"]
        widths = {str(name): int(width) for name, width in sites}
        names = list(widths)
        ranked = {role: [(names[site], int(index)) for site, index in pairs] for role, pairs in roles.items()}
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise no_neuron_file(source, error) from error
    check_format_version(version, NEURONS_FORMAT_VERSION, what=f"neuron file '{source}'")
    return ranked, widths


def no_neuron_file(source: str | os.PathLike[str], error: Exception) -> ValueError:
    """The error for what is no neuron file."""
    return ValueError(
        f"got '{source}' ({error}); expected a neuron file; write one with `neurontune select` or Neurons.save"
    )


def draw_bars(counts: Mapping[str, int]) -> str:
    """A line per name: the name, its count, and a bar in proportion to it; a count above 0 has a visible bar."""
    most = max(counts.values(), default=0)
    name_width, count_width = max(map(len, counts), default=0), len(str(most))
    lines = []
    for name, count in counts.items():
        bar = "#" * -(-count * BAR_LENGTH // max(1, most))
        lines.append(f"{name:<{name_width}}  {count:>{count_width}}  {bar}".rstrip())
    return "\n".join(lines)
