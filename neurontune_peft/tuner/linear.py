"""A linear module with scaled neurons: scaled on the fly, or in its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from neurontune_peft.tuner.layer import NeuronTuneLayer, scale_slices
from neurontune_peft.tuner.names import NOT_LOADED
from neurontune_peft.tuner.rows import CURRENT


class Linear(nn.Module, NeuronTuneLayer):
    """A Linear, Conv1D or quantised linear module with scaled neurons."""

    def __init__(self, base_layer: nn.Module, *, neuron_side: str = "input") -> None:
        super().__init__()
        NeuronTuneLayer.__init__(self, base_layer, neuron_side=neuron_side)

    def train(self, mode: bool = True) -> Linear:
        # transformers' load_adapter sets tensors one by one, past every state-dict hook, and then calls eval().
        self.check_loaded()
        super().train(mode)
        return self

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if self.neuron_side == "input":
            return self.base_layer(self.scaled(x), *args, **kwargs)
        return self.scaled(self.base_layer(x, *args, **kwargs))

    def scaled(self, hidden: Tensor) -> Tensor:
        """Neurons under the adapters that act now: those of the call's row plan, or else the active ones."""
        plan = CURRENT.plan
        if plan is not None:
            return self.scale_neurons_by_row(hidden, plan) if self.acts_on(plan) else hidden
        names = [] if self.merged else [name for name in self.active_adapters if name in self.neurontune_delta]
        return self.scale_neurons(hidden, names) if names else hidden

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """
        Fold the scales into the base weights; what they replace is kept, so that unmerging is exact.

        Args:
            safe_merge (`bool`, *optional*, defaults to `False`): Look for NaN and infinite values before writing.
            adapter_names (`list[str]`, *optional*): Adapters to merge; the active ones by default.

        Raises:
            ValueError: When the adapter was never loaded, or `safe_merge` finds a value that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.neurontune_delta]
        if not names:
            return
        self.check_loaded()
        merged = [*self.merged_adapters, *names]
        index = torch.cat([self.neurontune_index[name] for name in merged]).unique().long()
        if bool((index == NOT_LOADED).any()):
            raise ValueError(
                f"got adapter {names} without tensors; expected a loaded one; load its file before merging"
            )
        self.restore_weights()
        replaced = {key: part.index_select(dim, index) for key, (part, dim) in self.scaled_tensors().items()}
        scale = self.combined_scale(merged).detach()[index]
        scaled = {key: scale_slices(part, scale, self.scaled_tensors()[key][1]) for key, part in replaced.items()}
        if safe_merge and not all(torch.isfinite(part).all() for part in scaled.values()):
            raise ValueError(f"NaNs detected in the merged weights. The adapter {names[0]} seems to be broken")
        self.write_weights(scaled, index)
        self._before_merge = {"index": index, **replaced}
        self.merged_adapters = merged

    def unmerge(self) -> None:
        """Put back the very values that merging replaced."""
        self.restore_weights()
        self.merged_adapters = []

    def scaled_tensors(self) -> dict[str, tuple[Tensor, int]]:
        """The tensors that merging changes, each with the dimension that counts neurons."""
        tensors = {"weight": (self.get_base_weight(), self.neuron_dim)}
        bias = getattr(self.get_base_layer(), "bias", None)
        if self.neuron_side == "output" and bias is not None:
            tensors["bias"] = (bias.data, 0)
        return tensors

    def write_weights(self, slices: Mapping[str, Tensor], index: Tensor) -> None:
        """Write slices of the neurons `index` (int64, shape `(k,)`) into the base weights in place."""
        for key, (part, dim) in self.scaled_tensors().items():
            part.index_copy_(dim, index.to(part.device), slices[key].to(part))

    def restore_weights(self) -> None:
        """Undo a merge in the weights, if there is one, without forgetting which adapters it held."""
        if self._before_merge is not None:
            kept, self._before_merge = self._before_merge, None
            self.write_weights(kept, kept["index"])

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return self.neuron_side == "input" or getattr(self.get_base_layer(), "bias", None) is None

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The change of the weight that the adapter stands for: zero but for the slices of its neurons."""
        weight = self.get_base_weight()
        change = torch.zeros_like(weight)
        index = self.neurontune_index[adapter_name].long()
        part = scale_slices(weight.index_select(self.neuron_dim, index), self.scale(adapter_name) - 1, self.neuron_dim)
        return change.index_copy_(self.neuron_dim, index, part)
