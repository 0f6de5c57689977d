"""What is in an adapter, as a report shows it: how many neurons of each role in which layer, and the strongest."""

from __future__ import annotations

from typing import Any

from neurontune_peft.tuner.files import AdapterFile

STRONGEST = 20


def adapter_part(file: AdapterFile, *, strongest: int = STRONGEST) -> dict[str, Any]:
    """
    Describe an adapter as JSON types.

    Args:
        file ([`AdapterFile`]): The adapter.
        strongest (`int`, *optional*, defaults to `20`): How many neurons to name: those with the largest delta.

    Returns:
        `dict[str, Any]`: `bytes`, `base_model`, `base_model_fingerprint`, `neurons` and `of` (all neurons of the
            sites), `counts` by role, `modulation` (with `strength_on`, `strength_off` and `threshold` where a trigger
            decides), `sites` (each with `site`, `layer`, `width` and, by role, `count`, `mean`, `low` and `high` of
            the scales) and `strongest` (`site`, `index`, `role`, `rank` and `scale`).
    """
    config, neurons = file.config, file.neurons
    sites = []
    for site, width in neurons.widths.items():
        roles = {
            role: {
                "count": len(deltas[site]),
                "mean": 1 + float(deltas[site].float().mean()),
                "low": 1 + float(deltas[site].min()),
                "high": 1 + float(deltas[site].max()),
            }
            for role, deltas in file.deltas.items()
            if site in deltas and len(deltas[site])
        }
        sites.append({"site": site, "layer": layer_of(site), "width": width, "roles": roles})
    return {
        "bytes": file.size,
        "base_model": portable(config.base_model_name_or_path),
        "base_model_fingerprint": config.base_model_fingerprint,
        "neurons": neurons.total,
        "of": sum(neurons.widths.values()),
        "counts": dict(neurons.totals),
        "modulation": _modulation(config),
        "sites": sites,
        "strongest": _strongest(file, strongest),
    }


def layer_of(site: str) -> str:
    """The first number in a site's path; the path itself without one."""
    return next((part for part in site.split(".") if part.isdigit()), site)


def portable(name: str | None) -> str:
    """A model's name without the directories of the machine that it was loaded on."""
    text = name or "unknown"
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2] if text[:1] in "/~" or text[1:2] == ":" else text


def _modulation(config: Any) -> dict[str, Any]:
    if config.modulation == "static":
        return {"kind": "static"}
    names = {"strength_on": "strength_on", "strength_off": "strength_off", "threshold": "trigger_threshold"}
    return {"kind": "dynamic"} | {name: getattr(config, field) for name, field in names.items()}


def _strongest(file: AdapterFile, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"site": site, "index": int(index), "role": role, "rank": int(rank), "scale": 1 + float(delta)}
        for role, deltas in file.deltas.items()
        for site in deltas
        for index, rank, delta in zip(
            file.neurons.indices[role][site], file.neurons.ranks[role][site], deltas[site], strict=True
        )
    ]
    return sorted(found, key=lambda neuron: -abs(float(neuron["scale"]) - 1))[:count]
