"""A change of scales as a LoRA for llama.cpp; the scale that a request gives it is the strength."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from neurontune_peft.export.change import Change
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.lora import Factors, lora_factors

GGUF_NAME = "adapter.gguf"
# Names of model types that differ between transformers and llama.cpp.
_ARCHITECTURES = {
    "mistral": "llama",
    "gpt_neox": "gptneox",
    "phi": "phi2",
    "gemma3_text": "gemma3",
    "cohere": "command-r",
    "gpt_bigcode": "starcoder",
}


@dataclass(frozen=True)
class GgufNames:
    """
    How llama.cpp calls a model and its sites.

    Args:
        architecture (`str`): Value of `general.architecture`.
        tensors (`Mapping[str, str]`): Site to the name of its weight.
    """

    architecture: str
    tensors: Mapping[str, str]


def gguf_names(change: Change, checkpoint: Checkpoint, *, base: Path | None = None) -> GgufNames:
    """
    Find the names of the sites' weights in GGUF, by the tables of the `gguf` package.

    Args:
        change ([`Change`]): Its sites.
        checkpoint ([`Checkpoint`]): The base model.
        base (`Path`, *optional*): The base model in GGUF, which says its architecture and is checked for the tensors.

    Raises:
        ValueError: When `gguf` is missing, or the architecture or a site is unknown to it.
    """
    gguf = _library()
    tensors = None if base is None else base_tensors(base)
    architecture = base_architecture(base) if base is not None else _architecture_of(checkpoint.config)
    by_name = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in by_name:
        raise ValueError(
            f"got model type '{checkpoint.config.model_type}', which llama.cpp does not know by this name; expected "
            "one that it runs; pass the base model's GGUF file with --base, or use --to merged and convert the result"
        )
    layers = int(checkpoint.config.get_text_config().num_hidden_layers)
    table = gguf.get_tensor_name_map(by_name[architecture], layers)
    found = {}
    for site in change.sites:
        name = table.get_name(f"{site}.weight", try_suffixes=(".weight",))
        if name is None:
            raise ValueError(
                f"got '{site}', for which llama.cpp has no name in architecture '{architecture}'; expected MLP output "
                "projections; use --to merged and convert the result"
            )
        found[site] = name
        if tensors is not None:
            _check_base_tensor(tensors, name, checkpoint.linear_weight(site).shape)
    return GgufNames(architecture=architecture, tensors=found)


def write_gguf(
    change: Change,
    checkpoint: Checkpoint,
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
) -> dict[str, object]:
    """
    Write `adapter.gguf`, a LoRA for llama.cpp and what is built on it.

    Args:
        change ([`Change`]): The change.
        checkpoint ([`Checkpoint`]): The base model, in floating point.
        directory (`Path`): Where to write.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): float32 or float16.
        base (`Path`, *optional*): As in [`gguf_names`].

    Returns:
        `dict[str, object]`: Architecture and rank, for the record.

    Raises:
        ValueError: As [`gguf_names`] and [`lora_factors`], or for another dtype.
    """
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"got dtype {dtype} for GGUF; expected float32 or float16; choose one with --dtype")
    factors = lora_factors(change, checkpoint)
    names = gguf_names(change, checkpoint, base=base)
    gguf = _library()
    rank = next(iter(factors.values())).a.shape[0]
    temporary = directory / f".{GGUF_NAME}.tmp"
    writer = gguf.GGUFWriter(temporary, names.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # llama.cpp divides it by the rank
    for site, pair in factors.items():
        for part, tensor in (("lora_a", pair.a), ("lora_b", pair.b)):
            writer.add_tensor(f"{names.tensors[site]}.{part}", tensor.to(dtype).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, directory / GGUF_NAME)
    return {"architecture": names.architecture, "rank": rank}


def read_gguf(path: Path, names: Mapping[str, str]) -> dict[str, Factors]:
    """
    Read the factors of a LoRA back from a GGUF file, scaled as llama.cpp scales them.

    Args:
        path (`Path`): The file.
        names (`Mapping[str, str]`): Site to the name of its weight.

    Returns:
        `dict[str, Factors]`: Site to its factors.
    """
    reader = _reader(path)
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    alpha = float(reader.get_field(_library().Keys.Adapter.LORA_ALPHA).contents())
    found = {}
    for site, name in names.items():
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        found[site] = Factors(a=a, b=b * (alpha / b.shape[1]))
    return found


def base_architecture(base: Path) -> str:
    """Value of `general.architecture` of a GGUF file."""
    field = _reader(base).get_field("general.architecture")
    return str(field.contents()) if field is not None else ""


def adds_bos(base: Path) -> bool:
    """Whether llama.cpp puts the first token in front of every prompt; it does by default."""
    field = _reader(base).get_field("tokenizer.ggml.add_bos_token")
    return True if field is None else bool(field.contents())


def base_tensors(base: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes `(out, in)` of a GGUF file's tensors."""
    return {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in _reader(base).tensors}


def _check_base_tensor(tensors: Mapping[str, tuple[int, ...]], name: str, shape: torch.Size) -> None:
    if tensors.get(name) != tuple(shape):
        raise ValueError(
            f"got a base GGUF whose '{name}' has shape {tensors.get(name)}; expected {tuple(shape)}; pass the GGUF "
            "file of the adapter's own base model"
        )


def _architecture_of(config: PreTrainedConfig) -> str:
    text = config.get_text_config().model_type
    return _ARCHITECTURES.get(text, text)


def _reader(path: Path) -> Any:
    try:
        return _library().GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"got '{path.name}', which cannot be read as GGUF ({error}); expected a whole file; convert it again"
        ) from error


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "got no package 'gguf'; expected it for GGUF files; pip install 'neurontune-peft[gguf]'"
        ) from None
    return gguf
