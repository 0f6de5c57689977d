"""
Scaling neurons of a checkpoint that is quantised, without touching one quantised integer.

Formats with scale factors per output row dequantise as `W[o, i] = scale[o, group] * (q[o, i] - zero[o, group])`, so a
row of W is multiplied by multiplying its scale factors, whatever their sign. Neurons on the input side of a quantised
projection are rows of the projection that carries them (see `gated`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from neurontune_peft.export.checkpoint import FLOATS, Checkpoint
from neurontune_peft.export.gated import find_carrier
from neurontune_peft.export.streaming import Edit, read_entry
from neurontune_peft.tuner.merge import scale_slices

ABSMAX, NESTED, STATE = "weight.absmax", "weight.nested_absmax", "weight.quant_state.bitsandbytes__"
# Layouts of GPTQ and AWQ files whose `scales` are (groups, out); others permute or transpose them.
PLAIN_FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}


@dataclass(frozen=True)
class Factors:
    """
    The scale factors of a quantised projection, as a matrix in a file.

    Args:
        key (`str`): Name of the tensor.
        rows (`int`): Rows of the matrix.
        columns (`int`): Its columns.
        dim (`int`): Which of them are the projection's output rows: 0 or 1.
    """

    key: str
    rows: int
    columns: int
    dim: int


def is_quantized(checkpoint: Checkpoint, site: str) -> bool:
    """Whether a checkpoint that says how it is quantised keeps the weight of this module so."""
    if method_of(checkpoint) is None or checkpoint.layout_of(site) is not None:
        return False
    key = checkpoint.key_of(f"{site}.weight")
    return key is None or checkpoint.dtype_of(key) not in FLOATS


def method_of(checkpoint: Checkpoint) -> str | None:
    """The `quant_method` of the model's config; `None` for plain weights."""
    return None if (found := _settings(checkpoint)) is None else str(found.get("quant_method", "unknown"))


def quantized_edits(
    checkpoint: Checkpoint, site: str, index: Tensor, scale: Tensor, *, neuron_side: str
) -> Iterator[tuple[str, Edit]]:
    """
    Edits that scale the neurons of a quantised module: of scale factors, of a bias, of a plain carrier.

    Args:
        checkpoint ([`Checkpoint`]): The base model.
        site (`str`): Path of the module.
        index (`torch.Tensor`): Its neurons, int64, shape `(k,)`.
        scale (`torch.Tensor`): Their scales, float32, shape `(k,)`.
        neuron_side (`str`): `"input"` or `"output"`.

    Returns:
        `Iterator[tuple[str, Edit]]`: Name of the tensor and its edit.

    Raises:
        ValueError: When it cannot be exact, and why.
    """
    if neuron_side == "output":
        module, rows = site, index
    else:
        carrier = find_carrier(checkpoint.model.eval(), site)
        if carrier is None:
            raise _refused(
                checkpoint, site, "no projection in front of it carries the neurons as a factor (no gated MLP)"
            )
        module, rows = carrier.name, carrier.rows(index)
    if is_quantized(checkpoint, module):
        yield _edit(checkpoint, row_factors(checkpoint, module), rows, scale)
    elif (key := checkpoint.key_of(f"{module}.weight")) is not None:
        out, width = checkpoint.shape_of(key)
        yield _edit(checkpoint, Factors(key, out, width, dim=0), rows, scale)
    if (bias := checkpoint.key_of(f"{module}.bias")) is not None:
        yield _edit(checkpoint, Factors(bias, checkpoint.shape_of(bias)[0], 1, dim=0), rows, scale)


def row_factors(checkpoint: Checkpoint, module: str) -> Factors:
    """
    Find the scale factors of a quantised projection that belong to its output rows.

    Args:
        checkpoint ([`Checkpoint`]): The base model.
        module (`str`): Path of the projection.

    Raises:
        ValueError: When there are none, and why.
    """
    method, settings = method_of(checkpoint), _settings(checkpoint) or {}
    linear: Any = checkpoint.module(module)
    out, width = int(linear.out_features), int(linear.in_features)
    if method in PLAIN_FORMATS:
        return _packed(checkpoint, module, out, str(method), settings)
    if method == "bitsandbytes":
        return _bitsandbytes(checkpoint, module, out, width)
    if method not in ("compressed-tensors", "fbgemm_fp8", "fp8"):
        raise _refused(checkpoint, module, "where this format keeps scale factors of output rows is not known here")
    if problem := _hinders(settings):
        raise _refused(checkpoint, module, problem)
    key = checkpoint.key_of(f"{module}.weight_scale") or checkpoint.key_of(f"{module}.weight_scale_inv")
    if key is None:
        raise _refused(checkpoint, module, "it has no scale factors (weight_scale)")
    shape = checkpoint.shape_of(key)
    if len(shape) > 2 or not shape or shape[0] != out:
        kind = "one for the whole tensor" if torch.Size(shape).numel() == 1 else "shared by blocks of rows"
        raise _refused(checkpoint, module, f"its scale factors {list(shape)} are {kind}, not of single rows")
    return Factors(key, out, shape[1] if len(shape) == 2 else 1, dim=0)


def _packed(checkpoint: Checkpoint, module: str, out: int, method: str, settings: dict[str, Any]) -> Factors:
    """GPTQ and AWQ: `scales`, (groups, out)."""
    named = ("checkpoint_format", "format", "version")
    formats = [str(settings[name]).lower() for name in named if isinstance(settings.get(name), str)]
    if other := [name for name in formats if name not in PLAIN_FORMATS[method]]:
        raise _refused(checkpoint, module, f"the layout '{other[0]}' orders scale factors in a way of its own")
    key = checkpoint.key_of(f"{module}.scales")
    shape = () if key is None else checkpoint.shape_of(key)
    if key is None or len(shape) != 2 or shape[1] != out:
        raise _refused(checkpoint, module, f"its scale factors are {list(shape)}, not (groups, {out})")
    return Factors(key, shape[0], shape[1], dim=1)


def _bitsandbytes(checkpoint: Checkpoint, module: str, out: int, width: int) -> Factors:
    """8 bits: `SCB`, one per row. 4 bits: the largest of each block of a row, where no block spans two rows."""
    if (key := checkpoint.key_of(f"{module}.SCB")) is not None:
        return Factors(key, out, 1, dim=0)
    if checkpoint.key_of(f"{module}.{NESTED}") is not None:
        raise _refused(checkpoint, module, "its scale factors are quantised themselves (double quantisation)")
    key = checkpoint.key_of(f"{module}.{ABSMAX}")
    states = [name for kind in ("nf4", "fp4") if (name := checkpoint.key_of(f"{module}.{STATE}{kind}"))]
    if key is None or not states:
        raise _refused(checkpoint, module, "it has no scale factors (absmax)")
    with safe_open(str(checkpoint.directory / checkpoint.files[states[0]]), framework="pt") as file:
        block = int(json.loads(bytes(file.get_tensor(states[0]).tolist()))["blocksize"])
    if width % block:
        raise _refused(checkpoint, module, f"its blocks of {block} span rows of {width}")
    return Factors(key, out, width // block, dim=0)


def _hinders(settings: dict[str, Any]) -> str | None:
    """What else than the shape of scale factors keeps them from being those of a row."""
    if settings.get("transform_config"):
        return "its weights are rotated (transform_config)"
    groups = settings.get("config_groups") or {}
    if any(isinstance(group, dict) and group.get("output_activations") for group in groups.values()):
        return "outputs of its projections are quantised, too"
    return None


def _edit(checkpoint: Checkpoint, factors: Factors, index: Tensor, scale: Tensor) -> tuple[str, Edit]:
    """
    Scale factors of some output rows.

    Raises:
        ValueError: When factors are quantised themselves, are not as many as expected, or would not be finite.
    """
    path = checkpoint.directory / checkpoint.files[factors.key]
    if checkpoint.dtype_of(factors.key) not in FLOATS:
        kind = checkpoint.dtype_of(factors.key)
        raise _refused(checkpoint, factors.key, f"its scale factors are {kind}, in which a product would be rounded")
    entry = read_entry(path, factors.key)
    if torch.Size(entry.shape).numel() != factors.rows * factors.columns:
        raise _refused(checkpoint, factors.key, f"its scale factors have the shape {list(entry.shape)}")
    with safe_open(str(path), framework="pt") as file:
        held = file.get_tensor(factors.key).reshape(factors.rows, factors.columns)
    part = held.index_select(factors.dim, index).movedim(factors.dim, 0)
    if not torch.isfinite(scale_slices(part, scale)).all():
        raise _refused(checkpoint, factors.key, f"a scaled factor is not finite in {checkpoint.dtype_of(factors.key)}")
    edit = Edit(entry.start, factors.rows, factors.columns, entry.dtype, factors.dim, index, scale)
    return factors.key, edit


def _settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    found = getattr(checkpoint.config, "quantization_config", None)
    if found is None:
        found = getattr(checkpoint.config.get_text_config(), "quantization_config", None)
    return found if found is None or isinstance(found, dict) else dict(found.to_dict())


def _refused(checkpoint: Checkpoint, what: str, why: str) -> ValueError:
    return ValueError(
        f"got '{what}' quantised by {method_of(checkpoint)}, whose neurons cannot be scaled exactly: {why}; expected "
        "scale factors per output row; export from the unquantised model, and quantise what is written"
    )
