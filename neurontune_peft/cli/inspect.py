"""`neurontune inspect`: what is in an adapter? No model is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from neurontune_peft.tuner import NeuronTuneConfig
from neurontune_peft.tuner.files import AdapterFile


@dataclass(frozen=True)
class Inspect:
    """
    Show an adapter's neurons, scales and provenance without loading any model.

    Example: neurontune inspect user/adapter --neurons 10

    Args:
        adapter: Directory or Hub name of the adapter.
        revision: Branch, tag or commit on the Hub.
        neurons: How many of the top-ranked neurons of each role to list.
        json: Print JSON for machines.
    """

    adapter: Annotated[str, tyro.conf.Positional]
    revision: str | None = None
    neurons: int = 5
    json: bool = False

    def run(self) -> None:
        """Read and print."""
        file = AdapterFile.load(self.adapter, **({"revision": self.revision} if self.revision else {}))
        print(json.dumps(as_dict(file), indent=1) if self.json else as_text(file, top=self.neurons))


def scales_by_rank(file: AdapterFile, role: str) -> list[tuple[str, int, float]]:
    """Site, index and scale of a role's neurons, the best first."""
    found = [
        (int(rank), site, int(index), 1 + float(delta))
        for site, deltas in file.deltas[role].items()
        for rank, index, delta in zip(
            file.neurons.ranks[role][site], file.neurons.indices[role][site], deltas, strict=True
        )
    ]
    return [(site, index, scale) for _, site, index, scale in sorted(found)]


def as_dict(file: AdapterFile) -> dict[str, Any]:
    """Everything that an adapter says about itself, as JSON values."""
    return {
        "size_bytes": file.size,
        "config": {name: value for name, value in file.config.to_dict().items() if name != "peft_type"},
        "neurons": {
            role: [{"site": s, "index": i, "scale": scale} for s, i, scale in scales_by_rank(file, role)]
            for role in file.neurons.roles
        },
    }


def modulation_text(config: NeuronTuneConfig) -> str:
    """How the strength of a request is decided."""
    if config.modulation == "static":
        return "static: every request at strength 1"
    rule = f"{config.trigger_gate} at {config.trigger_threshold:.3f}"
    again = f", looked at again every {config.recheck_every} tokens" if config.recheck_every else ""
    strengths = f"strength {config.strength_on:g} for requests that trigger ({rule}), else {config.strength_off:g}"
    return f"dynamic: {strengths}{again}"


def as_text(file: AdapterFile, *, top: int) -> str:
    """The same for people: counts per site and role, the spread of scales, the top neurons, provenance."""
    config, total = file.config, sum(file.neurons.widths.values())
    lines = [
        f"NeuronTune adapter of {file.size:,} bytes, format {config.format_version}",
        f"base model   {config.base_model_name_or_path} (weights {config.base_model_fingerprint or 'unknown':.12})",
        f"neurons      {file.neurons.total:,} of {total:,} at {len(file.neurons.sites)} sites "
        f"({config.neuron_side} side)",
        f"modulation   {modulation_text(config)}",
    ]
    for role in file.neurons.roles:
        scales = torch.cat([1 + delta.float() for delta in file.deltas[role].values()])
        lines += [
            "",
            f"role {role}: {scales.numel()} neurons, scale {scales.min():.3f} to {scales.max():.3f}, median "
            f"{scales.median():.3f}, {int((scales == 1).sum())} unchanged",
            "  site".ljust(44) + "neurons  mean scale",
        ]
        for site, delta in file.deltas[role].items():
            lines.append(f"  {site}".ljust(44) + f"{delta.numel():7d}  {1 + delta.float().mean():10.3f}")
        for rank, (site, index, scale) in enumerate(scales_by_rank(file, role)[:top]):
            lines.append(f"  rank {rank}: {site}[{index}] scale {scale:.3f}")
    if config.provenance:
        lines += ["", "provenance", json.dumps(config.provenance, indent=1, sort_keys=True)]
    return "\n".join(lines)
