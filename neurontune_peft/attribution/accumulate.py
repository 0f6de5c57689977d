"""Streaming sums of scores, that survive an interruption and add up over processes.

Per pass over the prompts and per group of prompts the state is a count and, in float64, a sum per neuron (and where a
method needs it, the sum of squared deviations): O(groups x sites x width), whatever the number of prompts. Float64
keeps the batch size and the number of processes from showing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from neurontune_peft.checks import check_format_version, write_atomically

Keep = Literal["mean", "spread", "rows"]
CHECKPOINT_FORMAT_VERSION = 1


@dataclass
class Moments:
    """
    What is kept of the scores of a group of prompts.

    Args:
        count (`int`): Prompts so far.
        total (`dict[str, torch.Tensor]`): Site to the sum of scores, `(F,)`, float64.
        spread (`dict[str, torch.Tensor]`): Site to the sum of squared deviations from the mean, `(F,)`, float64;
            empty unless asked for.
        rows (`dict[str, torch.Tensor]`): Site to the scores themselves, `(N, F)`, float32; empty unless asked for.
    """

    count: int = 0
    total: dict[str, Tensor] = field(default_factory=dict)
    spread: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def zeros(cls, widths: Mapping[str, int], *, size: int, keep: Keep) -> Moments:
        """Nothing yet, of a group of `size` prompts."""
        return cls(
            total={site: torch.zeros(width, dtype=torch.float64) for site, width in widths.items()},
            spread={s: torch.zeros(w, dtype=torch.float64) for s, w in widths.items()} if keep == "spread" else {},
            rows={site: torch.zeros(size, width) for site, width in widths.items()} if keep == "rows" else {},
        )

    @property
    def mean(self) -> dict[str, Tensor]:
        """`dict[str, torch.Tensor]`: Site to the mean score, `(F,)`, float64."""
        return {site: total / self.count for site, total in self.total.items()}

    def add(self, places: Sequence[int], scores: Mapping[str, Tensor]) -> None:
        """
        Take in the scores of some prompts.

        Args:
            places (`Sequence[int]`): Places of the prompts within the group.
            scores (`Mapping[str, torch.Tensor]`): Site to `(B, F)`.
        """
        for site, score in scores.items():
            part = score.detach().cpu().double()  # (B, F)
            if self.rows:
                self.rows[site][list(places)] = part.float()
            other = Moments(len(places), {site: part.sum(dim=0)})
            if self.spread:
                other.spread[site] = (part - part.mean(dim=0)).square().sum(dim=0)
            self._merge(site, other)
        self.count += len(places)

    def _merge(self, site: str, other: Moments) -> None:
        """Parallel update of mean and squared deviations (Chan, Golub and LeVeque)."""
        if self.spread:
            self.spread[site] = self.spread[site] + other.spread[site]
            if self.count and other.count:
                between = other.total[site] / other.count - self.total[site] / self.count
                share = self.count * other.count / (self.count + other.count)
                self.spread[site] = self.spread[site] + between.square() * share
        self.total[site] = self.total[site] + other.total[site]

    def tensors(self) -> dict[tuple[str, str], Tensor]:
        """`(what, site)` to tensor, for the checkpoint."""
        parts = {"total": self.total, "spread": self.spread, "rows": self.rows}
        return {(what, site): tensor for what, sites in parts.items() for site, tensor in sites.items()}


def merged(parts: Iterable[Moments]) -> Moments:
    """Several groups as one; their rows one after the other."""
    parts = list(parts)
    first, rest = parts[0], parts[1:]
    whole = Moments(first.count, dict(first.total), dict(first.spread), {})
    for part in rest:
        for site in whole.total:
            whole._merge(site, part)
        whole.count += part.count
    whole.rows = {site: torch.cat([part.rows[site] for part in parts]) for site in first.rows}
    return whole


@dataclass
class Pass:
    """
    One pass of a method over the prompts of a role.

    Args:
        groups (`dict[str, Moments]`): Group to what is kept of it.
        position (`int`): How many of this process's prompts were scored.
        batch_size (`int`): Prompts per batch, as it was last found to fit.
    """

    groups: dict[str, Moments]
    position: int = 0
    batch_size: int = 1

    def reduced(self, device: torch.device) -> dict[str, Moments]:
        """The groups over all processes; the state of this process stays as it is."""
        if processes()[1] == 1:
            return self.groups
        return {name: _reduce(moments, device) for name, moments in self.groups.items()}


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _sum(tensor: Tensor, device: torch.device) -> Tensor:
    """The sum over processes, on the CPU; a backend of GPUs alone, such as NCCL, cannot reach tensors there."""
    on_cpu = torch.distributed.get_backend() in ("gloo", "mpi", "undefined")  # undefined: one backend per device type
    there = tensor.to("cpu" if on_cpu else device, copy=True)
    torch.distributed.all_reduce(there)
    return there.cpu()


def _reduce(own: Moments, device: torch.device) -> Moments:
    count = int(_sum(torch.tensor([own.count]), device))
    whole = Moments(count, {site: _sum(total, device) for site, total in own.total.items()})
    for site, spread in own.spread.items():
        # Deviations from the common mean: those from the own one, and the distance between the two.
        apart = own.total[site] / max(1, own.count) - whole.total[site] / max(1, count)
        whole.spread[site] = _sum(spread + own.count * apart.square(), device)
    whole.rows = {site: _sum(rows, device) for site, rows in own.rows.items()}  # each row is filled by one process
    return whole


@dataclass(frozen=True)
class Checkpoint:
    """
    A file that an interrupted run goes on from.

    Args:
        path (`Path`): The file; each of several processes has one of its own.
        options (`Mapping[str, Any]`): All that the scores depend on; a file of other options is refused.
    """

    path: Path
    options: Mapping[str, Any]

    @classmethod
    def at(cls, path: str | os.PathLike[str], options: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint of this process."""
        rank, world = processes()
        name = Path(path)
        own = name if world == 1 else name.with_name(f"{name.name}.{rank}of{world}")
        return cls(own, {**options, "processes": world})

    def save(self, passes: Mapping[str, Pass]) -> None:
        """Write the state of all passes; a reader sees the old state or the new one."""
        index: list[list[str]] = []
        tensors = {}
        for name, part in passes.items():
            for group, moments in part.groups.items():
                for (what, site), tensor in moments.tensors().items():
                    tensors[str(len(index))] = tensor.contiguous()
                    index.append([name, group, what, site])
        state = {
            name: {
                "position": part.position,
                "batch_size": part.batch_size,
                "counts": {group: moments.count for group, moments in part.groups.items()},
            }
            for name, part in passes.items()
        }
        metadata = {
            "format_version": str(CHECKPOINT_FORMAT_VERSION),
            "options": json.dumps(self.options),
            "passes": json.dumps(state),
            "index": json.dumps(index),
        }
        write_atomically(self.path, serialize(tensors, metadata=metadata))

    def load(self) -> dict[str, Pass]:
        """
        Read the state, or nothing when there is no file.

        Raises:
            ValueError: When the file is no checkpoint, or one of other options.
        """
        if not self.path.exists():
            return {}
        try:
            with safe_open(str(self.path), framework="pt") as file:
                metadata = dict(file.metadata() or {})
                version, options = int(metadata["format_version"]), json.loads(metadata["options"])
                check_format_version(version, CHECKPOINT_FORMAT_VERSION, what=f"checkpoint '{self.path}'")
                self._check(options)
                passes = {
                    name: Pass(
                        {g: Moments(n) for g, n in part["counts"].items()}, part["position"], part["batch_size"]
                    )
                    for name, part in json.loads(metadata["passes"]).items()
                }
                for number, (name, group, what, site) in enumerate(json.loads(metadata["index"])):
                    vars(passes[name].groups[group])[what][site] = file.get_tensor(str(number))
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"got checkpoint '{self.path}' ({error}); expected a state of `attribute`; delete it or name another"
            ) from error
        return passes

    def _check(self, found: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.options))
        if other := [key for key in wanted if found.get(key) != wanted[key]]:
            key = other[0]
            raise ValueError(
                f"got checkpoint '{self.path}' of a run with another {', '.join(other)} ({key} {found.get(key)!r}); "
                f"expected the options of this run ({key} {wanted[key]!r}); delete the file, name another, or repeat "
                "the options"
            )

    def remove(self) -> None:
        """Delete the file, when the scores are complete."""
        self.path.unlink(missing_ok=True)
