"""Folding scales into base weights, and taking them out again bit for bit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.names import NOT_LOADED


class MergeableLayer(nn.Module, NeuronTuneLayer):
    """A wrapped module whose weights hold one slice per neuron."""

    def __init__(self, base_layer: nn.Module, **options: Any) -> None:
        super().__init__()
        NeuronTuneLayer.__init__(self, base_layer, **options)
        # Adapter to the factor of its deltas in merged weights; kept, as turning a dial merges again.
        self.merge_strengths: dict[str, float] = {}

    @abstractmethod
    def read_slices(self, index: Tensor) -> dict[str, Tensor]:
        """
        Copy the parts of the base weights that belong to neurons.

        Args:
            index (`torch.Tensor`): Neurons, int64, shape `(k,)`.

        Returns:
            `dict[str, torch.Tensor]`: Name of the parameter to a tensor of shape `(k, ...)`.
        """

    @abstractmethod
    def write_slices(self, slices: Mapping[str, Tensor], index: Tensor) -> None:
        """Write what [`read_slices`] gave, or its like, into the base weights in place."""

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
        self.unmerge()  # should merging fail, nothing is merged
        replaced = self.read_slices(index)
        scale = self.combined_scale(merged, factors=self.merge_strengths)[index]
        scaled = {key: scale_slices(part, scale) for key, part in replaced.items()}
        broken = [key for key, part in scaled.items() if safe_merge and not torch.isfinite(part).all()]
        if broken:
            part = "bias" if broken == ["bias"] else "weights"
            raise ValueError(f"NaNs detected in the merged {part}. The adapter {names[0]} seems to be broken")
        self.write_slices(scaled, index)
        self._before_merge = {"index": index, **replaced}
        self.merged_adapters = merged

    def unmerge(self) -> None:
        """Put back the very values that merging replaced."""
        self.restore_weights()
        self.merged_adapters = []

    def restore_weights(self) -> None:
        """Undo a merge in the weights, if there is one, without forgetting which adapters it held."""
        if self._before_merge is not None:
            kept, self._before_merge = self._before_merge, None
            self.write_slices(kept, kept["index"])

    def train(self, mode: bool = True) -> MergeableLayer:
        # transformers' load_adapter sets tensors one by one, past every state-dict hook, and then calls eval().
        self.check_loaded()
        super().train(mode)
        return self


def scale_slices(part: Tensor, scale: Tensor) -> Tensor:
    """Multiply slices of shape `(k, ...)` by `scale` (shape `(k,)`) in float32, and round once to their own dtype."""
    precision = torch.promote_types(part.dtype, torch.float32)
    factor = scale.detach().to(part.device).view(-1, *[1] * (part.ndim - 1))
    return (part.to(precision) * factor).to(part.dtype)
