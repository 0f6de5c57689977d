"""A linear module with scaled neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neurontune_peft.tuner.merge import MergeableLayer, scale_slices


class Linear(MergeableLayer):
    """A Linear, Conv1D or quantised linear module with scaled neurons."""

    def __init__(self, base_layer: nn.Module, *, neuron_side: str = "input") -> None:
        in_features, out_features = _get_in_out_features(base_layer)
        super().__init__(base_layer, width=in_features if neuron_side == "input" else out_features)
        self.in_features, self.out_features = in_features, out_features
        self.neuron_side = neuron_side
        # A Conv1D stores (in, out), a Linear (out, in).
        self.neuron_dim = int((neuron_side == "input") != isinstance(base_layer, Conv1D))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if self.neuron_side == "input":
            return self.base_layer(self.scaled(x), *args, **kwargs)
        return self.scaled(self.base_layer(x, *args, **kwargs))

    def read_slices(self, index: Tensor) -> dict[str, Tensor]:
        slices = {"weight": self.get_base_weight().index_select(self.neuron_dim, index).movedim(self.neuron_dim, 0)}
        if (bias := self._scaled_bias()) is not None:
            slices["bias"] = bias.index_select(0, index)
        return slices

    def write_slices(self, slices: Mapping[str, Tensor], index: Tensor) -> None:
        weight = self.get_base_weight()
        place = index.to(weight.device)
        weight.index_copy_(self.neuron_dim, place, slices["weight"].to(weight).movedim(0, self.neuron_dim))
        if (bias := self._scaled_bias()) is not None:
            bias.index_copy_(0, place, slices["bias"].to(bias))

    def _scaled_bias(self) -> Tensor | None:
        bias = getattr(self.get_base_layer(), "bias", None)
        return bias.data if self.neuron_side == "output" and bias is not None else None

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Scaling a bias is not a change of the weight, so it cannot become a LoRA."""
        if adapter_name in self.neurontune_trigger:
            raise ValueError(
                f"got adapter '{adapter_name}' with dynamic modulation; expected a static one, as a LoRA cannot "
                "decide for each request; call set_modulation('static') first, which acts on every request"
            )
        return self._scaled_bias() is None

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The change of the weight that the adapter stands for: zero but for the slices of its neurons."""
        if adapter_name not in self.neurontune_delta:  # it has no neurons here
            return torch.zeros_like(self.get_base_weight())
        index = self.neurontune_index[adapter_name].long()
        part = scale_slices(self.read_slices(index)["weight"], self.scale(adapter_name) - 1)
        return torch.zeros_like(self.get_base_weight()).index_copy_(
            self.neuron_dim, index, part.movedim(0, self.neuron_dim)
        )

    def extra_repr(self) -> str:
        return f"neuron_side={self.neuron_side!r}, {super().extra_repr()}"
