"""A merged checkpoint, streamed over the shards of the base model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from neurontune_peft.checks import write_atomically
from neurontune_peft.export.change import Change
from neurontune_peft.export.checkpoint import Checkpoint, SiteWeights, companions
from neurontune_peft.export.quantized import is_quantized, quantized_edits
from neurontune_peft.export.streaming import Edit, Entry, link_or_copy, read_entry, write_edited

PLAN = "plan.json"


def write_merged(change: Change, checkpoint: Checkpoint, directory: Path) -> dict[str, object]:
    """
    Write the base model with its neurons scaled, as [`~NeuronTuneModel.merge_and_unload`] scales them.

    Shards without a scaled neuron are hard-linked or copied, as are tokenizer, chat template and configs. Of the
    others all bytes but those of scaled slices are copied. A shard gets its name when it is whole and was read
    back, so that a run that was cut off goes on after the last of them. `plan.json` says what they belong to; the
    caller deletes it when all is done.

    Args:
        change ([`Change`]): The change.
        checkpoint ([`Checkpoint`]): The base model.
        directory (`Path`): Where to write; what an interrupted run of the same export left there is kept.

    Returns:
        `dict[str, object]`: Numbers of shards written and linked, for the record.

    Raises:
        ValueError: When a scaled weight is quantised or stored in a way in which neurons are no slices, or there is no
            room.
    """
    edits = planned_edits(change, checkpoint)
    go_on_or_clear(directory, plan_of(change, checkpoint))
    check_room(checkpoint, edits, directory)
    for name in logging.tqdm(checkpoint.shards, desc="shards"):
        source, target = checkpoint.directory / name, directory / name
        if target.is_file() and target.stat().st_size == source.stat().st_size:
            continue
        target.unlink(missing_ok=True)
        if name in edits:
            write_edited(source, target, edits[name])
        else:
            link_or_copy(source, target)
    if (checkpoint.directory / SAFE_WEIGHTS_INDEX_NAME).is_file():
        copy_file(checkpoint.directory / SAFE_WEIGHTS_INDEX_NAME, directory / SAFE_WEIGHTS_INDEX_NAME)
    for path in companions(checkpoint.directory):
        copy_file(checkpoint.directory / path, directory / path)
    return {"shards_scaled": len(edits), "shards_linked": len(checkpoint.shards) - len(edits)}


def planned_edits(change: Change, checkpoint: Checkpoint) -> dict[str, list[Edit]]:
    """
    What is scaled in which file.

    Args:
        change ([`Change`]): The change.
        checkpoint ([`Checkpoint`]): The base model.

    Returns:
        `dict[str, list[Edit]]`: Name of a shard to its edits.

    Raises:
        ValueError: As [`write_merged`], and when two sites share a weight.
    """
    edits: dict[str, list[Edit]] = {}
    owners: dict[str, str] = {}
    for site, (index, delta) in change.sites.items():
        if is_quantized(checkpoint, site):
            for key, edit in quantized_edits(checkpoint, site, index, 1 + delta, neuron_side=change.neuron_side):
                check_own(owners, key, site)
                if index.numel():
                    edits.setdefault(checkpoint.files[key], []).append(edit)
            continue
        weights = checkpoint.weights_of(site)
        for key, name in [(key, checkpoint.files[key]) for key in (*weights.keys, weights.bias) if key]:
            check_own(owners, key, site)
            if not index.numel() or (key == weights.bias and change.neuron_side == "input"):
                continue
            entry = read_entry(checkpoint.directory / name, key)
            check_shape(entry, key, weights, checkpoint)
            edits.setdefault(name, []).extend(edits_of(entry, key, weights, change, index, 1 + delta))
    return {name: found for name, found in edits.items() if found}


def check_own(owners: dict[str, str], key: str, site: str) -> None:
    """
    Note whose weight a tensor is.

    Raises:
        ValueError: When it is another site's, too.
    """
    if owners.setdefault(key, site) != site:
        raise ValueError(
            f"got '{key}' shared by '{site}' and '{owners[key]}'; expected weights of their own, as each would be "
            "scaled twice; merge in memory with merge_and_unload instead"
        )


def check_shape(entry: Entry, key: str, weights: SiteWeights, checkpoint: Checkpoint) -> None:
    """
    Refuse a tensor that is not as large as the model's parameter.

    Raises:
        ValueError: Names both shapes.
    """
    if weights.layout is not None:
        wanted = tuple(checkpoint.model.get_parameter(f"{weights.site}.down_proj").shape)
        wanted = wanted[1:] if len(entry.shape) == 2 else wanted
    else:
        part = "bias" if key == weights.bias else "weight"
        wanted = tuple(checkpoint.model.get_parameter(f"{weights.site}.{part}").shape)
    if entry.shape != wanted:
        raise ValueError(
            f"got '{key}' of shape {entry.shape}; expected {wanted}, as the config says; download the model again"
        )


def edits_of(entry: Entry, key: str, weights: SiteWeights, change: Change, index: Tensor, scale: Tensor) -> list[Edit]:
    """
    Edits of one tensor of a site.

    Args:
        entry ([`Entry`]): Where the tensor is.
        key (`str`): Its name.
        weights ([`SiteWeights`]): What it belongs to.
        change ([`Change`]): Says which side the neurons are on.
        index (`torch.Tensor`): All neurons of the site.
        scale (`torch.Tensor`): Their scales.
    """
    rows, columns = entry.shape if len(entry.shape) == 2 else entry.shape[-2:] if len(entry.shape) == 3 else (1, 0)
    if key == weights.bias:
        return [Edit(entry.start, entry.shape[0], 1, entry.dtype, 0, index, scale)]
    dim = int((change.neuron_side == "input") != weights.transposed)
    if weights.layout is None:
        return [Edit(entry.start, rows, columns, entry.dtype, dim, index, scale)]
    size = columns if dim else rows  # neurons of one expert; neuron j of expert e has the index e * size + j
    fused = len(entry.shape) == 3
    found = []
    for expert in torch.unique(index // size).tolist():
        if not fused and weights.keys[expert] != key:
            continue
        here = index // size == expert
        start = entry.start + (expert * rows * columns * entry.dtype.itemsize if fused else 0)
        found.append(Edit(start, rows, columns, entry.dtype, dim, index[here] % size, scale[here]))
    return found


def plan_of(change: Change, checkpoint: Checkpoint) -> str:
    """A hash of all that decides the bytes of merged shards: the change, and the base's names, sizes and times."""
    digest = hashlib.sha256(change.neuron_side.encode())
    for site, (index, delta) in change.sites.items():
        digest.update(f"{site}\n".encode())
        digest.update(index.numpy().tobytes())
        digest.update(delta.numpy().tobytes())
    stats: Mapping[str, list[int]] = {
        name: [stat.st_size, stat.st_mtime_ns]
        for name in checkpoint.shards
        for stat in [(checkpoint.directory / name).stat()]
    }
    digest.update(json.dumps(stats, sort_keys=True).encode())
    return digest.hexdigest()


def go_on_or_clear(directory: Path, plan: str) -> None:
    """Keep what an interrupted run of the same plan has written; delete everything else."""
    path = directory / PLAN
    if not (path.is_file() and path.read_text(encoding="utf-8") == plan):
        shutil.rmtree(directory)
        directory.mkdir()
        write_atomically(path, plan)


def check_room(checkpoint: Checkpoint, edits: Mapping[str, object], directory: Path) -> None:
    """
    Refuse to begin what the disk cannot hold.

    Raises:
        OSError: When there is less room than the scaled shards need.
    """
    sizes = {name: (checkpoint.directory / name).stat().st_size for name in edits}
    needed = sum(size for name, size in sizes.items() if not (directory / name).is_file())
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(f"{free / 1e9:.1f} GB are free and {needed / 1e9:.1f} GB needed")


def copy_file(source: Path, target: Path) -> None:
    """Copy a small file as it is."""
    write_atomically(target, source.read_bytes())
