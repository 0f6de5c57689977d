"""The arithmetic: scaling the neurons of one module, on the fly or in its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neurontune_peft.checks import check_indices
from neurontune_peft.tuner.names import NOT_LOADED


@dataclass(frozen=True)
class Dial:
    """
    Setting of one role of an adapter.

    Args:
        strength (`float`, *optional*, defaults to `1.0`): Effective scale `1 + strength * delta`.
        count (`int`, *optional*): How many of the role's top-ranked neurons act; all by default.
    """

    strength: float = 1.0
    count: int | None = None


class NeuronTuneLayer(BaseTunerLayer):
    """
    What every wrapped module holds, per adapter, for its `k` selected neurons.

    - `neurontune_delta`: scale - 1, float32, shape `(k,)`, trainable, 0 at the start;
    - `neurontune_index`: which neurons, int32, shape `(k,)`;
    - `neurontune_rank`: their ranks within their roles, int32, shape `(k,)`;
    - `neurontune_strength`: strength per neuron, float32, shape `(k,)`, 1 unless a dial is turned; not saved;
    - `roles`: role to the slice of the `k` neurons that have it;
    - `dials`: role to its [`Dial`], from which `neurontune_strength` follows.

    The effective scale of a neuron is `1 + sum(strength * delta)` over the active adapters.
    """

    adapter_layer_names = ("neurontune_delta",)
    other_param_names = ("neurontune_index", "neurontune_rank", "neurontune_strength", "roles", "dials")

    base_layer: nn.Module
    if TYPE_CHECKING:  # PEFT's base class is not annotated
        active_adapters: list[str]

        def get_base_layer(self) -> nn.Module: ...

        def get_base_weight(self) -> Tensor: ...

    def __init__(self, base_layer: nn.Module, *, neuron_side: str = "input") -> None:
        self.base_layer = base_layer
        self.neurontune_delta = nn.ParameterDict({})
        self.neurontune_index = BufferDict(persistent=True)
        self.neurontune_rank = BufferDict(persistent=True)
        self.neurontune_strength = BufferDict(persistent=False)
        self.roles: dict[str, dict[str, slice]] = {}
        self.dials: dict[str, dict[str, Dial]] = {}
        self.quantization_backend = resolve_quantization_backend(base_layer)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.in_features, self.out_features = _get_in_out_features(base_layer)
        self.neuron_side = neuron_side
        self.width: int = self.in_features if neuron_side == "input" else self.out_features
        # A Conv1D stores (in, out), a Linear (out, in).
        self.neuron_dim = int((neuron_side == "input") != isinstance(base_layer, Conv1D))
        self._unchecked: set[str] = set()
        self._before_merge: dict[str, Tensor] | None = None

    def update_layer(
        self,
        adapter_name: str,
        *,
        selected: Mapping[str, tuple[Tensor, Tensor]],
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """
        Add an adapter.

        Args:
            adapter_name (`str`): Its name.
            selected (`Mapping[str, tuple[torch.Tensor, torch.Tensor]]`):
                Role to the indices and ranks of its neurons, both of shape `(k_role,)`. Indices of `NOT_LOADED` stand
                for neurons that a file will bring.
            init_weights (`bool`, *optional*, defaults to `True`): Start as the identity instead of at random deltas.
            inference_mode (`bool`, *optional*, defaults to `False`): Freeze the deltas.

        Raises:
            ValueError: When an index is out of range, negative or repeated.
        """
        roles, start = {}, 0
        for role in sorted(selected):
            stop = start + selected[role][0].numel()
            roles[role], start = slice(start, stop), stop
        index = torch.cat([selected[role][0] for role in roles]).to(torch.int32)
        to_be_loaded = bool((index == NOT_LOADED).all())
        if not to_be_loaded:
            check_indices(type(self).__name__, index, self.width)
        delta = torch.zeros(start) if init_weights else torch.randn(start)
        self.roles[adapter_name] = roles
        self.dials[adapter_name] = {role: Dial() for role in roles}
        self.neurontune_delta[adapter_name] = nn.Parameter(delta)
        self.neurontune_index[adapter_name] = index
        self.neurontune_rank[adapter_name] = torch.cat([selected[role][1] for role in roles]).to(torch.int32)
        self.neurontune_strength[adapter_name] = torch.ones(start)
        if to_be_loaded:
            self._unchecked.add(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # The base class also casts to the base layer's dtype, which would round float32 deltas through bfloat16.
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        if device is None or device.type == "meta":
            return
        for name in ("neurontune_delta", "neurontune_index", "neurontune_rank", "neurontune_strength"):
            held = getattr(self, name)
            if adapter_name in held and not held[adapter_name].is_meta:
                moved = held[adapter_name].to(device)
                held[adapter_name] = nn.Parameter(moved, moved.requires_grad) if name == "neurontune_delta" else moved

    def check_loaded(self) -> None:
        """
        Refuse impossible tensors of adapters that a loader wrote into this layer without going through a state dict.

        Raises:
            ValueError: When an index is out of range or repeated, or a delta is NaN or infinite.
        """
        for adapter_name in list(self._unchecked):
            index = self.neurontune_index[adapter_name]
            if index.is_meta or bool((index == NOT_LOADED).all()):
                continue
            check_indices(type(self).__name__, index, self.width)
            check_finite(type(self).__name__, self.neurontune_delta[adapter_name])
            self._unchecked.discard(adapter_name)

    def turn_dial(self, adapter_name: str, role: str, **setting: Any) -> None:
        """
        Change the dial of one role.

        Args:
            adapter_name (`str`): The adapter.
            role (`str`): The role.
            setting: New values of fields of [`Dial`].
        """
        dial = replace(self.dials[adapter_name][role], **setting)
        self.dials[adapter_name][role] = dial
        part = self.roles[adapter_name][role]
        rank = self.neurontune_rank[adapter_name][part]
        acts = torch.ones_like(rank) if dial.count is None else rank < dial.count
        # In place: compiled graphs and other references see the new numbers.
        self.neurontune_strength[adapter_name][part] = acts * dial.strength
        if self.merged:
            merged = self.merged_adapters
            self.unmerge()
            self.merge(adapter_names=merged)

    def scale(self, adapter_name: str) -> Tensor:
        """Effective scales of an adapter's neurons, `1 + strength * delta`, shape `(k,)`, float32."""
        return 1 + self.neurontune_strength[adapter_name] * self.neurontune_delta[adapter_name]

    def scale_neurons(self, hidden: Tensor, adapter_names: list[str]) -> Tensor:
        """
        Multiply the selected neurons by their scales; everything else passes through untouched.

        Args:
            hidden (`torch.Tensor`): Shape `(..., width)`.
            adapter_names (`list[str]`): The adapters whose scales combine as `1 + sum(strength * delta)`.

        Returns:
            `torch.Tensor`: A new tensor of the same shape and dtype.
        """
        if len(adapter_names) == 1:
            index, scale = self.neurontune_index[adapter_names[0]], self.scale(adapter_names[0])
        else:
            index, scale = None, self.combined_scale(adapter_names)  # (F,)
        # Half precision multiplies in float32: bfloat16 cannot tell a scale of 1.003 from 1.
        precision = torch.promote_types(hidden.dtype, torch.float32)
        if index is None or index.numel() == self.width:
            dense = scale if index is None else torch.ones_like(scale).index_put((index,), scale)  # (F,)
            return (hidden.to(precision) * dense).to(hidden.dtype)
        # Only k numbers per token are kept for the backward pass, not F.
        chosen = (hidden[..., index].to(precision) * scale).to(hidden.dtype)  # (..., k)
        scaled = hidden.clone()  # (..., F)
        scaled[..., index] = chosen
        return scaled

    def combined_scale(self, adapter_names: list[str]) -> Tensor:
        """Scales of all neurons under several adapters, `1 + sum(strength * delta)`, shape `(width,)`, float32."""
        first = self.neurontune_delta[adapter_names[0]]
        total = torch.ones(self.width, device=first.device, dtype=first.dtype)
        for name in adapter_names:
            total = total.index_add(0, self.neurontune_index[name], self.scale(name) - 1)
        return total

    def extra_repr(self) -> str:
        return (
            f"neuron_side={self.neuron_side!r}, neurons={ {n: d.numel() for n, d in self.neurontune_delta.items()} }"
        )


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
        names = [] if self.merged else [name for name in self.active_adapters if name in self.neurontune_delta]
        if not names:
            return self.base_layer(x, *args, **kwargs)
        if self.neuron_side == "input":
            return self.base_layer(self.scale_neurons(x, names), *args, **kwargs)
        return self.scale_neurons(self.base_layer(x, *args, **kwargs), names)

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


def scale_slices(part: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Multiply slices along `dim` by `scale` (shape `(k,)`) in float32 and round once to the dtype of `part`."""
    shape = [1] * part.ndim
    shape[dim] = -1
    precision = torch.promote_types(part.dtype, torch.float32)
    return (part.to(precision) * scale.detach().to(part.device).view(shape)).to(part.dtype)


def check_finite(site: str, delta: Tensor) -> None:
    """
    Refuse deltas that are NaN or infinite.

    Raises:
        ValueError: Names the site and the place.
    """
    delta = delta.detach()
    bad = (~torch.isfinite(delta)).nonzero()
    if bad.numel():
        raise ValueError(
            f"got delta {float(delta[bad[0, 0]])} at '{site}', position {int(bad[0, 0])}; expected finite numbers; "
            "train or download the adapter again"
        )
