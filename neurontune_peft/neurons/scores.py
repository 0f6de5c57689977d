"""Scores of all neurons, per role."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from neurontune_peft.checks import write_atomically


@dataclass(frozen=True)
class Scores:
    """
    The score of every neuron of every site, per role.

    Args:
        values (`Mapping[str, Mapping[str, torch.Tensor]]`):
            Role to site to a float32 tensor of shape `(F,)`. Positive means that amplifying the neuron raises the
            role's objective.
        metadata (`Mapping[str, str]`, *optional*, defaults to `{}`):
            Where the scores come from (method, steps, seed, fingerprint of the prompts).

    Raises:
        ValueError: When a tensor is not one-dimensional or holds NaN or infinite values.
    """

    values: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, sites in self.values.items():
            for site, score in sites.items():
                if score.ndim != 1:
                    raise ValueError(
                        f"got scores of shape {tuple(score.shape)} for role '{role}' at '{site}'; expected (F,), one "
                        "number per neuron; average over prompts first"
                    )
                if not torch.isfinite(score).all():
                    bad = int((~torch.isfinite(score)).nonzero()[0])
                    raise ValueError(
                        f"got a NaN or infinite score for role '{role}' at '{site}', neuron {bad}; expected finite "
                        "numbers; score again in float32"
                    )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles, in the order in which they were scored."""
        return tuple(self.values)

    @property
    def widths(self) -> dict[str, int]:
        """Number of neurons per site."""
        return {site: score.numel() for sites in self.values.values() for site, score in sites.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as safetensors, one tensor per role and site, named `role/site`."""
        tensors = {
            f"{role}/{site}": t.contiguous() for role, sites in self.values.items() for site, t in sites.items()
        }
        # The header sorts tensors by name; the order of roles and sites is part of the value, so it is kept apart.
        metadata = {**self.metadata, "order": json.dumps([name.split("/", 1) for name in tensors])}
        write_atomically(path, serialize(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """
        Read scores written by [`Scores.save`].

        Raises:
            ValueError: When the file is missing, damaged or not a score file.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = dict(file.metadata() or {})
                order = json.loads(metadata.pop("order"))
                values: dict[str, dict[str, Tensor]] = {}
                for role, site in order:
                    values.setdefault(role, {})[site] = file.get_tensor(f"{role}/{site}")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"got '{path}' ({error}); expected a score file; write one with `neurontune attribute` or Scores.save"
            ) from error
        return cls(values=values, metadata=metadata)

    def __str__(self) -> str:
        origin = ", ".join(f"{key} {value}" for key, value in self.metadata.items())
        lines = [f"Scores of {sum(self.widths.values())} neurons at {len(self.widths)} sites ({origin})"]
        for role, sites in self.values.items():
            best = max(((float(s.max()), int(s.argmax()), site) for site, s in sites.items()), default=None)
            if best is not None:
                lines.append(f"  {role}: highest {best[0]:.4g} at {best[2]}[{best[1]}]")
        return "\n".join(lines)
