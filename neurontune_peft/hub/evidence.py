"""What is known about an adapter's effect: the report beside it, or the measures in its own configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurontune_peft.checks import parse_json
from neurontune_peft.evaluation import Report
from neurontune_peft.training import for_flagged_requests
from neurontune_peft.tuner import NeuronTuneConfig

REPORT, FRONTIER, CERTIFICATE = "report.json", "frontier.json", "certificate.json"
MAX_REPORT = 64_000_000


@dataclass(frozen=True)
class Evidence:
    """
    What was measured, and how the adapter was made.

    Args:
        before (`Report`, *optional*): The base model.
        after (`Report`, *optional*): The tuned model.
        frontier (`Mapping[str, Any]`): `points` and `presets`; empty when there is none.
        certificate (`Mapping[str, Any]`): The certificate; empty when there is none.
        command (`str`, *optional*): The command that made the adapter.
    """

    before: Report | None = None
    after: Report | None = None
    frontier: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None

    @classmethod
    def of(cls, directory: Path | None, config: NeuronTuneConfig) -> Evidence:
        """
        Read what stands beside an adapter, and what its configuration says.

        Args:
            directory (`Path`, *optional*): The adapter's directory; without it, the configuration alone is read.
            config ([`NeuronTuneConfig`]): Its configuration.

        Raises:
            ValueError: When a file is too large or is no report.
        """
        provenance = _mapping(config.provenance)
        metrics = _mapping(provenance.get("metrics"))
        found: dict[str, Any] = {}
        if directory is not None:
            parts = {"frontier": _read(directory / FRONTIER), "certificate": _read(directory / CERTIFICATE)}
            found = _read(directory / REPORT) | {name: part for name, part in parts.items() if part}
        # Both from one measurement, or none.
        pairs: tuple[tuple[Any, Any], ...] = (
            (found.get("before"), found.get("after")),
            (metrics.get("base"), metrics.get("tuned")),
        )
        pair = next((p for p in pairs if all(isinstance(report, Mapping) for report in p)), None)
        return cls(
            before=None if pair is None else _report(pair[0]),
            after=None if pair is None else _report(pair[1]),
            frontier=_mapping(found.get("frontier") or {"presets": provenance.get("presets")}),
            certificate=_mapping(found.get("certificate")),
            command=found.get("command") or tune_command(config),
        )

    @property
    def presets(self) -> dict[str, dict[str, Any]]:
        """`dict[str, dict[str, Any]]`: Name of a preset to its strength, counts and threshold."""
        points, presets = list(self.frontier.get("points") or []), _mapping(self.frontier.get("presets"))
        settings = {n: points[at] if type(at) is int and 0 <= at < len(points) else at for n, at in presets.items()}
        wanted = ("strength", "counts", "threshold", "attack_success", "over_refusal", "perplexity")
        return {
            name: {key: setting[key] for key in wanted if setting.get(key) is not None}
            for name, setting in settings.items()
            if isinstance(setting, Mapping)
        }


def tune_command(config: NeuronTuneConfig) -> str | None:
    """
    The `neurontune tune` command that makes an adapter with this provenance; `None` for adapters made otherwise.

    Args:
        config ([`NeuronTuneConfig`]): The adapter's configuration.
    """
    provenance = _mapping(config.provenance)
    selection, training = provenance.get("selection"), provenance.get("training")
    if not isinstance(selection, Mapping) or not isinstance(training, Mapping):
        return None
    words = ["neurontune", "tune", str(config.base_model_name_or_path), "--output", "adapter"]
    words += ["--method", str(_mapping(provenance.get("attribution")).get("method", "gradient"))]
    words += ["--counts", *(f"{role}={count}" for role, count in _mapping(selection.get("counts")).items())]
    trigger = ("reading_share", "trigger_window", "false_positive_budget", "full_strength_budget", "nearly_flagged")
    for name in ("overlap", "spread", "rounds", *trigger):
        if name in selection:
            words += [f"--{name.replace('_', '-')}", str(selection[name])]
    words += ["--modulation", config.modulation]
    if config.modulation == "dynamic":
        words += ["--strength-on", f"{config.strength_on:g}"]
    usual = for_flagged_requests().to_dict()
    for name, value in training.items():
        if usual.get(name) != value and isinstance(value, (bool, int, float, str)):
            flag = name.replace("_", "-")
            words += [f"--{'no-' if value is False else ''}{flag}", *([] if isinstance(value, bool) else [str(value)])]
    return shlex.join(words)


def _mapping(value: Any) -> Mapping[str, Any]:
    """What a stranger's file calls a mapping, where it is one."""
    return value if isinstance(value, Mapping) else {}


def _report(values: Mapping[str, Any]) -> Report:
    return Report.from_dict({"examples": [], **values})


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if (size := path.stat().st_size) > MAX_REPORT:
        raise ValueError(f"got '{path.name}' of {size:,} bytes; expected at most {MAX_REPORT:,}; make it again")
    return parse_json(path.read_bytes(), what=f"'{path.name}'")
