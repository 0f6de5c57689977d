"""The fingerprint of a base model from its files: headers and sampled blocks are read, no model is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from neurontune_peft.checks import parse_json
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.fingerprint import joined, weight_digest
from neurontune_peft.tuner.header import TensorEntry, read_header

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# One weight per expert, in the words of the checkpoints whose experts transformers fuses while loading.
_EXPERT = re.compile(r"(.*?\.\d+\.).*experts\.(\d+)\.(?:down_proj|w2)\.weight")


@dataclass(frozen=True)
class Stored:
    """
    A tensor in a file.

    Args:
        path (`Path`): The file.
        entry ([`TensorEntry`]): Where in it.
    """

    path: Path
    entry: TensorEntry

    @property
    def count(self) -> int:
        """`int`: Number of values."""
        return math.prod(self.entry.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Values of the flattened tensor from one place to another, shape `(stop - start,)`."""
        dtype = _DTYPES[self.entry.dtype]
        with self.path.open("rb") as stream:
            stream.seek(self.entry.start + start * dtype.itemsize)
            data = stream.read((stop - start) * dtype.itemsize)
        return torch.frombuffer(bytearray(data), dtype=dtype)


def checkpoint_fingerprint(directory: str | os.PathLike[str], config: NeuronTuneConfig) -> str | None:
    """
    What [`fingerprint`] gives for the weights that an adapter scales, from the files of a model.

    Only headers and sixteen blocks of 256 values per weight are read: about 8 kB per scaled weight, whatever the size
    of the model.

    Args:
        directory (`str` or `os.PathLike`): Directory with `model.safetensors`, or shards and their index.
        config ([`NeuronTuneConfig`]): The adapter's configuration, which names what is scaled.

    Returns:
        `str` or `None`: 64 hexadecimal digits; `None` for quantised weights.

    Raises:
        ValueError: When there are no safetensors files, or they lack a weight that is scaled.
    """
    directory = Path(directory)
    tensors = _stored(directory)
    described = directory / CONFIG_NAME
    if described.is_file() and parse_json(described.read_bytes(), what=CONFIG_NAME).get("quantization_config"):
        return None
    experts = _experts(tensors)
    parts = [_weight(site, tensors, experts) for site in _sites(config, tensors)]
    if any(part.entry.dtype not in _DTYPES for found in parts for part in found):
        return None
    return joined(_digest(found) for found in parts)


def _stored(directory: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint by name."""
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        shards = parse_json(index.read_bytes(), what=SAFE_WEIGHTS_INDEX_NAME).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    else:
        names = [SAFE_WEIGHTS_NAME] if (directory / SAFE_WEIGHTS_NAME).is_file() else []
    if not names or any(Path(name).name != name or not (directory / name).is_file() for name in names):
        raise ValueError(
            f"got '{directory}' with weights in {names[:3] or 'no safetensors file'}; expected {SAFE_WEIGHTS_NAME}, "
            f"or shards beside their {SAFE_WEIGHTS_INDEX_NAME}; give the directory of a whole checkpoint"
        )
    paths = [directory / name for name in names]
    return {key: Stored(path, entry) for path in paths for key, entry in read_header(path).tensors.items()}


def _sites(config: NeuronTuneConfig, tensors: Iterable[str]) -> list[str]:
    """Modules that the adapter targets, as `matching_modules` finds them in a model."""
    known = set(config.site_widths or {})
    targets = config.target_modules
    if known and isinstance(targets, (set, list)) and set(targets) <= known:
        return sorted(known)
    modules = sorted(name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))
    return [name for name in modules if check_target_module_exists(config, name)]


def _experts(tensors: dict[str, Stored]) -> dict[str, dict[int, Stored]]:
    """Name of a layer to the weights of its experts by number."""
    found: dict[str, dict[int, Stored]] = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = tensor
    return found


def _weight(site: str, tensors: dict[str, Stored], experts: dict[str, dict[int, Stored]]) -> list[Stored]:
    """The weight of a site: one tensor, or one for each expert in their order."""
    keys = (f"{site}.weight", f"{site}.down_proj")
    for key in keys:
        if key in tensors:
            return [tensors[key]]
    layer = re.match(r".*?\.\d+\.", site)
    own = experts.get(layer[0], {}) if layer else {}
    if site.endswith("experts") and own and sorted(own) == list(range(len(own))):
        return [own[number] for number in sorted(own)]
    for key in keys:
        # Checkpoints of a bare or of a wrapped model lack, or have, the name of the module around it.
        near = [name for name in tensors if key.endswith(f".{name}") or name.endswith(f".{key}")]
        if len(near) == 1:
            return [tensors[near[0]]]
    raise ValueError(
        f"got a checkpoint without the weight of '{site}' (it has {sorted(tensors)[:3]} …); expected the model that "
        "the adapter scales; give another directory"
    )


def _digest(parts: list[Stored]) -> str:
    if len(parts) == 1:
        return weight_digest(parts[0].entry.shape, parts[0].read)
    each = parts[0].count

    def read(start: int, stop: int) -> Tensor:
        found = []
        for number in range(start // each, (stop - 1) // each + 1):
            low, high = max(start - number * each, 0), min(stop - number * each, each)
            found.append(parts[number].read(low, high))
        return torch.cat(found)

    return weight_digest((len(parts), *parts[0].entry.shape), read)
