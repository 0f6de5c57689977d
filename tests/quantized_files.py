"""Small packers of published formats of quantised weights, and their dequantisation, both in plain torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns stands in which four bits
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """How a weight (out, in) is stored, how it is read, and what the config says."""

    pack: Callable[[Tensor], Tensors]
    unpack: Callable[[Tensors], Tensor]
    config: dict[str, Any]


def packed(values: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight numbers of four bits per int32, along a dimension."""
    groups = values.long().unflatten(dim, (-1, 8)).movedim(dim + 1, -1)
    words = sum(groups[..., column] << (4 * place) for place, column in enumerate(order))
    return (words - (words >> 31 << 32)).to(torch.int32)


def unpacked(words: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """The reverse of `packed`."""
    nibbles = torch.stack([(words.long() >> (4 * order.index(column))) & 15 for column in range(8)], dim=dim + 1)
    return nibbles.flatten(dim, dim + 1)


def grouped(weight: Tensor, *, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (out, in), fp16 scales and zeros (out, groups) of an asymmetric quantisation."""
    parts = weight.unflatten(1, (-1, GROUP))
    least, most = parts.amin(-1), parts.amax(-1)
    scale = ((most - least) / (high - low)).to(torch.float16)
    zero = (low - least / scale.float()).round().clamp(low, high)
    integers = (parts / scale.float().unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(low, high)
    return integers.flatten(1).long(), scale, zero.long()


def pack_gptq(weight: Tensor) -> Tensors:
    integers, scale, zero = grouped(weight, low=0, high=15)
    order = torch.arange(weight.shape[1]).flip(0)  # as with desc_act: rows belong to groups in another order
    return {
        "qweight": packed(integers.T[order], 0),
        "qzeros": packed((zero.T - 1) % 16, 1),
        "scales": scale.T.contiguous(),
        "g_idx": (order // GROUP).to(torch.int32),
    }


def unpack_gptq(tensors: Tensors) -> Tensor:
    """`scales[g_idx] * (q - (z + 1))`, as GPTQ's files of version 1 hold zeros less 1."""
    group = tensors["g_idx"].long()
    zero = (unpacked(tensors["qzeros"], 1) + 1) % 16
    return (tensors["scales"].float()[group] * (unpacked(tensors["qweight"], 0) - zero[group])).T


def pack_awq(weight: Tensor) -> Tensors:
    integers, scale, zero = grouped(weight, low=0, high=15)
    return {
        "qweight": packed(integers.T, 1, AWQ_ORDER),
        "qzeros": packed(zero.T, 1, AWQ_ORDER),
        "scales": scale.T.contiguous(),
    }


def unpack_awq(tensors: Tensors) -> Tensor:
    """`(q - z) * scale`, in groups of inputs."""
    integers, zero = (unpacked(tensors[name], 1, AWQ_ORDER) for name in ("qweight", "qzeros"))
    return ((integers - zero.repeat_interleave(GROUP, 0)) * tensors["scales"].float().repeat_interleave(GROUP, 0)).T


def pack_int4(weight: Tensor) -> Tensors:
    integers, scale, zero = grouped(weight, low=-8, high=7)
    return {
        "weight_packed": packed(integers + 8, 1),
        "weight_zero_point": packed(zero + 8, 0),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def pack_int4_symmetric(weight: Tensor) -> Tensors:
    scale = (weight.unflatten(1, (-1, GROUP)).abs().amax(-1) / 7).to(torch.float16)
    integers = (weight / scale.float().repeat_interleave(GROUP, 1)).round().clamp(-8, 7).long()
    return {
        "weight_packed": packed(integers + 8, 1),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def unpack_int4_symmetric(tensors: Tensors) -> Tensor:
    """`q * scale`, in groups of inputs; integers are stored with 8 added."""
    return (unpacked(tensors["weight_packed"], 1) - 8) * tensors["weight_scale"].float().repeat_interleave(GROUP, 1)


def unpack_int4(tensors: Tensors) -> Tensor:
    """`(q - z) * scale`, in groups of inputs; integers are stored with 8 added."""
    integers, zero = unpacked(tensors["weight_packed"], 1), unpacked(tensors["weight_zero_point"], 0)
    return (integers - zero.repeat_interleave(GROUP, 1)) * tensors["weight_scale"].float().repeat_interleave(GROUP, 1)


def pack_rows(weight: Tensor, *, dtype: torch.dtype, most: float, scale_dtype: torch.dtype) -> Tensors:
    scale = (weight.abs().amax(1, keepdim=True) / most).to(scale_dtype)
    values = weight / scale.float()
    return {"weight": (values if dtype.is_floating_point else values.round()).to(dtype), "weight_scale": scale}


def unpack_rows(tensors: Tensors) -> Tensor:
    """`q * scale`, by rows."""
    return tensors["weight"].float() * tensors["weight_scale"].float()


def _pack_fp8(weight: Tensor) -> Tensors:
    return pack_rows(weight, dtype=torch.float8_e4m3fn, most=448, scale_dtype=torch.float32)


def _compressed(kind: str, strategy: str, bits: int, form: str, *, symmetric: bool = True) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": symmetric}
    weights |= {"dynamic": False, "group_size": GROUP if strategy == "group" else None}
    tokens = {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "output_activations": None}
    group["input_activations"] = tokens if strategy == "channel" else None
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


FORMATS = {
    "gptq": Format(
        pack_gptq,
        unpack_gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "checkpoint_format": "gptq"},
    ),
    "awq": Format(pack_awq, unpack_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "int4": Format(pack_int4, unpack_int4, _compressed("int", "group", 4, "pack-quantized", symmetric=False)),
    "int4-symmetric": Format(
        pack_int4_symmetric, unpack_int4_symmetric, _compressed("int", "group", 4, "pack-quantized")
    ),
    "int8": Format(
        lambda weight: pack_rows(weight, dtype=torch.int8, most=127, scale_dtype=torch.bfloat16),
        unpack_rows,
        _compressed("int", "channel", 8, "int-quantized"),
    ),
    "fp8": Format(_pack_fp8, unpack_rows, _compressed("float", "channel", 8, "float-quantized")),
    "fbgemm": Format(_pack_fp8, unpack_rows, {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}),
}


def quantize(base: Path, target: Path, form: Format, *, keep: tuple[str, ...] = ("lm_head",)) -> Path:
    """Write a model's directory with its linear weights in a format, but for those whose names hold one of `keep`."""
    target.mkdir()
    tensors: Tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj") and not any(word in name for word in keep):
            tensors |= {f"{module}.{part}": value for part, value in form.pack(tensor.float()).items()}
        else:
            tensors[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": form.config}
    (target / "config.json").write_text(json.dumps(config))
    return target


def parts_of(tensors: Tensors, module: str) -> Tensors:
    """The tensors of a module, by the last part of their names."""
    return {name.rpartition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{module}.")}
