"""`neurontune inspect`: what is in an adapter? No model is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from neurontune_peft.hub.evidence import Evidence
    from neurontune_peft.tuner import NeuronTuneConfig
    from neurontune_peft.tuner.files import AdapterFile


@dataclass(frozen=True)
class Inspect:
    """
    Show an adapter's neurons, scales, trigger, presets, effect and provenance without loading any model.

    Example: neurontune inspect user/adapter --neurons 10 --base checkpoints/chat-model

    Args:
        adapter: Directory or Hub name of the adapter.
        revision: Branch, tag or commit on the Hub.
        base: Directory of a model; is it the one that the adapter was made for? Sampled bytes of its files are read.
        neurons: How many of the top-ranked neurons of each role to list.
        json: Print JSON for machines.
    """

    adapter: Annotated[str, tyro.conf.Positional]
    revision: str | None = None
    base: Path | None = None
    neurons: int = 5
    json: bool = False

    def run(self) -> None:
        """
        Read and print.

        Raises:
            SystemExit: With code 1 when `base` is another model than the one that the adapter was made for.
        """
        from neurontune_peft.hub.evidence import Evidence
        from neurontune_peft.tuner.base_files import checkpoint_fingerprint
        from neurontune_peft.tuner.files import AdapterFile

        file = AdapterFile.load(self.adapter, **({"revision": self.revision} if self.revision else {}))
        directory = Path(self.adapter)
        evidence = Evidence.of(directory if directory.is_dir() else None, file.config)
        found = None if self.base is None else checkpoint_fingerprint(self.base, file.config)
        known = file.config.base_model_fingerprint
        fits = None if found is None or known is None else found == known
        if self.json:
            print(json.dumps(as_dict(file, evidence) | {"base_fits": fits}, indent=1))
        else:
            print(as_text(file, evidence, top=self.neurons))
        if self.base is not None and not self.json:
            print(f"\n'{self.base}': {BASES[fits]} (weights {found or 'unknown':.12})")
        if fits is False:
            raise SystemExit(1)


BASES = {
    True: "the model that this adapter was made for",
    False: "ANOTHER model than the one that this adapter was made for",
    None: "cannot be compared, as one of the two fingerprints is unknown",
}


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


def as_dict(file: AdapterFile, evidence: Evidence) -> dict[str, Any]:
    """Everything that an adapter says about itself, as JSON values."""
    return {
        "size_bytes": file.size,
        "checksum": file.checksum,
        "counts": file.neurons.counts,
        "presets": evidence.presets,
        "effect": effect_text(evidence),
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
    rule += f" to {config.trigger_threshold + config.trigger_ramp:.3f}" if config.trigger_gate == "ramp" else ""
    rule += f", windows of {config.trigger_window} tokens" if config.trigger_window else ""
    again = f", looked at again every {config.recheck_every} tokens" if config.recheck_every else ""
    strengths = f"strength {config.strength_on:g} for requests that trigger ({rule}), else {config.strength_off:g}"
    return f"dynamic: {strengths}{again}"


def checksum_text(file: AdapterFile) -> str:
    """Whether the tensors are those that were saved."""
    return "none in the file" if file.checksum is None else f"right (tensors {file.checksum:.12})"


def effect_text(evidence: Evidence) -> str:
    """What was measured, in a sentence."""
    from neurontune_peft.report import summary

    if evidence.before is None or evidence.after is None:
        return "not measured"
    return summary(evidence.before, evidence.after)


def as_text(file: AdapterFile, evidence: Evidence, *, top: int) -> str:
    """The same for people: counts per site and role, the spread of scales, the top neurons, provenance."""
    import torch

    config, total = file.config, sum(file.neurons.widths.values())
    lines = [
        f"NeuronTune adapter of {file.size:,} bytes, format {config.format_version}",
        f"base model   {config.base_model_name_or_path} (weights {config.base_model_fingerprint or 'unknown':.12})",
        f"neurons      {file.neurons.total:,} of {total:,} at {len(file.neurons.sites)} sites "
        f"({config.neuron_side} side)",
        f"modulation   {modulation_text(config)}",
        f"checksum     {checksum_text(file)}",
        f"effect       {effect_text(evidence)}",
    ]
    lines += [f"preset       {name}: {json.dumps(setting)}" for name, setting in evidence.presets.items()]
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
        # The measures are summed up above; as_dict has them in full.
        shown = {name: value for name, value in config.provenance.items() if name != "metrics"}
        lines += ["", "provenance", json.dumps(shown, indent=1, sort_keys=True)]
    return "\n".join(lines)
