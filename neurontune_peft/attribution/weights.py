"""Weights with which neurons write into the stream, also where they are quantised or offloaded."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neurontune_peft.tuner.experts import experts_layout
from neurontune_peft.tuner.quantized import QuantizedLinear, quantization_backend
from neurontune_peft.tuner.targets import base_of


def outgoing_weights(module: nn.Module, start: int, count: int) -> Tensor:
    """
    Outgoing weights of adjacent neurons of a site.

    Args:
        module (`nn.Module`): The site's module; weights are those below its adapters.
        start (`int`): The first neuron: 0, or the first of one expert.
        count (`int`): Number of neurons, I: all of a linear site, or all of one expert.

    Returns:
        `torch.Tensor`: `(O, I)`, in floating point.
    """
    base: Any = base_of(module)
    layout = experts_layout(base)
    offloaded = any(parameter.is_meta for parameter in base.parameters(recurse=False))
    # Not during the module's forward pass, for which accelerate has brought them: leaving would take them away.
    with align_module_device(base) if offloaded else nullcontext():
        if layout is not None:
            weight = base.down_proj[start // count]
            return (weight.T if layout.transposed else weight).detach()
        if (backend := quantization_backend(base)) is not None:
            return QuantizedLinear(base, backend=backend).get_base_weight().detach()
        return (base.weight.T if isinstance(base, Conv1D) else base.weight).detach()
