"""Keeping 4-bit weights of bitsandbytes readable on CPUs for which it packs them."""

from __future__ import annotations

from typing import Any

from torch import nn


def unpack_4bit(module: nn.Module, *, for_good: bool = False) -> None:
    """
    Bring a 4-bit weight of bitsandbytes into the layout in which it can be dequantised, saved and trained.

    On CPUs with AVX512-BF16 the first forward pass without gradients packs such a weight for a faster kernel (11 times
    at one token). Packed, it passes no gradients on and dequantises to other numbers, without an error; bitsandbytes'
    own way back, which a mere `state_dict()` takes, leaves the step sizes in the wrong order (0.50). What packing did
    to them, a rounding to bfloat16, stays; packing again changes nothing more.

    Args:
        module (`nn.Module`): Any module; those of other classes are left alone.
        for_good (`bool`, *optional*, defaults to `False`): Have the module not packed any more.
    """
    if not getattr(module, "support_avx512bf16_for_cpu", False):  # bitsandbytes' flag of its 4-bit modules
        return
    layer: Any = module
    layer.support_avx512bf16_for_cpu = not for_good
    state = layer.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    absmax = state.absmax.T.reshape(-1).float()  # packed: (blocks per row, rows) in bfloat16
    state.original_nested = False  # quantising the step sizes once more would lose more
    layer.weight.data, state = _convert_weight_packed_for_cpu_inverse(layer.weight.data, state)
    state.absmax = absmax
    layer.weight.quant_state = layer.quant_state = state


def unpack_for_training(model: nn.Module) -> None:
    """Unpack every 4-bit weight of a model for good, so that gradients pass."""
    for module in model.modules():
        unpack_4bit(module, for_good=True)


def unpack_before_saving(model: nn.Module) -> None:
    """
    Have `model.state_dict()` unpack 4-bit weights first; once per model.

    It stays when adapters are taken off, as bitsandbytes' fault does.
    """
    packs = any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())
    if packs and _unpack_all not in model._state_dict_pre_hooks.values():
        model.register_state_dict_pre_hook(_unpack_all)


def _unpack_all(model: nn.Module, *_: Any) -> None:
    for module in model.modules():
        unpack_4bit(module)
