"""What every wrapped module holds for its neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from neurontune_peft.checks import check_indices
from neurontune_peft.tuner.names import NOT_LOADED, SAVED, TRIGGER
from neurontune_peft.tuner.scaling import Scaling
from neurontune_peft.tuner.trigger import TRIGGER_DTYPE


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


class NeuronTuneLayer(Scaling, BaseTunerLayer):
    """
    What every wrapped module holds, per adapter, for its `k` selected neurons.

    - `neurontune_delta`: scale - 1, float32, shape `(k,)`, trainable, 0 at the start;
    - `neurontune_index`: which neurons, int32, shape `(k,)`;
    - `neurontune_rank`: their ranks within their roles, int32, shape `(k,)`;
    - `neurontune_trigger`: weights of the trigger, bfloat16, shape `(k, 2)`, with dynamic modulation only;
    - `neurontune_strength`: strength per neuron, float32, shape `(k,)`, 1 unless a dial is turned; not saved;
    - `roles`: role to the slice of the `k` neurons that have it;
    - `dials`: role to its [`Dial`], from which `neurontune_strength` follows.

    The effective scale of a neuron is `1 + sum(strength * delta)` over the active adapters.
    """

    adapter_layer_names = ("neurontune_delta",)
    other_param_names = (
        "neurontune_index",
        "neurontune_rank",
        "neurontune_trigger",
        "neurontune_strength",
        "roles",
        "dials",
    )

    base_layer: nn.Module
    if TYPE_CHECKING:  # PEFT's base class is not annotated
        active_adapters: list[str]

        def get_base_layer(self) -> nn.Module: ...

        def get_base_weight(self) -> Tensor: ...

        def set_base_weight(self, weight_data: Tensor) -> None: ...

    def __init__(self, base_layer: nn.Module, *, width: int) -> None:
        self.base_layer = base_layer
        self.neurontune_delta = nn.ParameterDict({})
        self.neurontune_index = BufferDict(persistent=True)
        self.neurontune_rank = BufferDict(persistent=True)
        self.neurontune_trigger = BufferDict(persistent=True)
        self.neurontune_strength = BufferDict(persistent=False)
        self.roles: dict[str, dict[str, slice]] = {}
        self.dials: dict[str, dict[str, Dial]] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.width = width  # number of neurons that the module has in all
        self._unchecked: set[str] = set()
        self._turned: set[str] = set()  # adapters with a dial that was touched
        self._before_merge: dict[str, Tensor] | None = None
        self._union: tuple[tuple[Any, ...], list[Tensor], Tensor, Tensor] | None = None

    def update_layer(
        self,
        adapter_name: str,
        *,
        selected: Mapping[str, tuple[Tensor, Tensor]],
        init_weights: bool = True,
        inference_mode: bool = False,
        dynamic: bool = False,
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
            dynamic (`bool`, *optional*, defaults to `False`): Hold weights of a trigger; they start as the deltas do.

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
        if dynamic:
            weights = torch.zeros(start, 2) if init_weights else torch.randn(start, 2)
            self.neurontune_trigger[adapter_name] = weights.to(TRIGGER_DTYPE)
        if to_be_loaded:
            self._unchecked.add(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # The base class also casts to the base layer's dtype, which would round float32 deltas through bfloat16.
        if device is None:  # some quantised modules hold buffers only
            base = self.get_base_layer()
            device = next(chain(base.parameters(), base.buffers())).device
        if device.type == "meta":
            return
        for name in (*SAVED, TRIGGER, "neurontune_strength"):
            held = getattr(self, name)
            if adapter_name in held and not held[adapter_name].is_meta:
                moved = held[adapter_name].to(device)
                held[adapter_name] = nn.Parameter(moved, moved.requires_grad) if name == "neurontune_delta" else moved

    def leave_to_loader(self, adapter_name: str) -> None:
        """
        Have what is saved on the meta device when the deltas are, until a loader brings it.

        `low_cpu_mem_usage` moves parameters alone, and PEFT's replacing of a module cannot copy empty buffers.
        """
        if self.neurontune_delta[adapter_name].is_meta:
            self.neurontune_index[adapter_name] = self.neurontune_index[adapter_name].to("meta")
            self.neurontune_rank[adapter_name] = self.neurontune_rank[adapter_name].to("meta")
            if adapter_name in self.neurontune_trigger:
                self.neurontune_trigger[adapter_name] = self.neurontune_trigger[adapter_name].to("meta")
            self._unchecked.add(adapter_name)

    def check_loaded(self) -> None:
        """
        Refuse impossible tensors of adapters that a loader wrote into this layer without going through a state dict.

        Raises:
            ValueError: When an index is out of range or repeated, or a delta or trigger weight is NaN or infinite.
        """
        for adapter_name in list(self._unchecked):
            index = self.neurontune_index[adapter_name]
            if index.is_meta or bool((index == NOT_LOADED).all()):
                continue
            check_indices(type(self).__name__, index, self.width)
            check_finite(type(self).__name__, self.neurontune_delta[adapter_name])
            if adapter_name in self.neurontune_trigger:
                check_finite(type(self).__name__, self.neurontune_trigger[adapter_name], what="trigger weight")
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
        self._turned.add(adapter_name)
        part = self.roles[adapter_name][role]
        rank = self.neurontune_rank[adapter_name][part]
        acts = torch.ones_like(rank) if dial.count is None else rank < dial.count
        # In place: compiled graphs and other references see the new numbers.
        self.neurontune_strength[adapter_name][part] = acts * dial.strength
        if self.merged:
            merged = self.merged_adapters
            self.unmerge()
            self.merge(adapter_names=merged)

    def extra_repr(self) -> str:
        return f"neurons={ {name: delta.numel() for name, delta in self.neurontune_delta.items()} }"


def check_finite(site: str, delta: Tensor, *, what: str = "delta") -> None:
    """
    Refuse deltas, or other weights of an adapter, that are NaN or infinite.

    Raises:
        ValueError: Names the site and the place.
    """
    delta = delta.detach()
    bad = (~torch.isfinite(delta)).nonzero()
    if bad.numel():
        raise ValueError(
            f"got {what} {float(delta[tuple(bad[0])])} at '{site}', position {int(bad[0, 0])}; expected finite "
            "numbers; train or download the adapter again"
        )
