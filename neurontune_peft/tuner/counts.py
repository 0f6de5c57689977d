"""Numbers of neurons in a configuration: role to site to count, and site to width."""

from __future__ import annotations

from collections.abc import Mapping


def check_neuron_counts(neuron_counts: object) -> None:
    """
    Refuse anything but role -> site -> positive number.

    Raises:
        ValueError: Shows what was found.
    """
    well_formed = isinstance(neuron_counts, dict) and all(
        isinstance(role, str) and is_counts(sites) for role, sites in neuron_counts.items()
    )
    if not well_formed or not any(neuron_counts.values()):  # type: ignore[attr-defined]
        raise ValueError(
            f"got neuron_counts={neuron_counts!r:.200}; expected {{role: {{site: positive number}}}}; pass `neurons` "
            "and leave neuron_counts to be filled in"
        )


def check_counts_fit(neuron_counts: Mapping[str, Mapping[str, int]], site_widths: Mapping[str, int]) -> None:
    """
    Refuse more neurons at a site than the site has, before memory is asked for as many.

    Raises:
        ValueError: Names the site.
    """
    for site, width in site_widths.items():
        held = sum(sites.get(site, 0) for sites in neuron_counts.values())
        if held > width:
            raise ValueError(
                f"got {held:,} neurons at '{site[:200]}', which has {width:,}; expected no more; save the adapter "
                "again"
            )


def is_counts(value: object) -> bool:
    """Whether a value maps names to positive whole numbers."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and type(count) is int and count > 0 for name, count in value.items()
    )
