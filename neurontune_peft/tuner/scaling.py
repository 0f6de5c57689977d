"""The arithmetic of scaling neurons on the fly, for all rows of a batch alike or for each on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from neurontune_peft.tuner.rows import CURRENT, RowPlan


class Scaling:
    """Methods of [`NeuronTuneLayer`] that compute with what it holds."""

    neurontune_delta: nn.ParameterDict
    neurontune_index: BufferDict
    neurontune_strength: BufferDict
    neurontune_trigger: BufferDict
    width: int
    merged: bool
    active_adapters: list[str]
    _unchecked: set[str]
    _turned: set[str]
    _union: tuple[tuple[Any, ...], list[Tensor], Tensor, Tensor] | None

    if TYPE_CHECKING:  # of the class that this one is mixed with

        def check_loaded(self) -> None: ...

    def scale(self, adapter_name: str) -> Tensor:
        """Effective scales of an adapter's neurons, `1 + strength * delta`, shape `(k,)`, float32 or wider."""
        return 1 + self.change_of(adapter_name)

    def change_of(self, adapter_name: str) -> Tensor:
        """Effective scales - 1, shape `(k,)`; bfloat16 cannot tell a scale of 1.003 from 1, so float32 or wider."""
        change = self.neurontune_delta[adapter_name]
        # A graph must hold for every strength; otherwise a dial that was never turned costs no multiplication.
        if torch.compiler.is_compiling() or adapter_name in self._turned:
            change = self.neurontune_strength[adapter_name] * change
        return change.to(torch.promote_types(change.dtype, torch.float32))

    def scale_neurons(self, hidden: Tensor, adapter_names: list[str]) -> Tensor:
        """
        Multiply the selected neurons by their scales; everything else passes through untouched.

        Args:
            hidden (`torch.Tensor`): Shape `(..., width)`.
            adapter_names (`list[str]`): The adapters whose scales combine as `1 + sum(strength * delta)`.

        Returns:
            `torch.Tensor`: A new tensor of the same shape and dtype.
        """
        trains = torch.is_grad_enabled() and any(self.neurontune_delta[name].requires_grad for name in adapter_names)
        if len(adapter_names) > 1 or not (trains or is_slow_to_cast(hidden)):
            return multiplied(hidden, self.combined_scale(adapter_names))
        index = self.neurontune_index[adapter_names[0]]
        if index.numel() == self.width:
            return multiplied(hidden, self.combined_scale(adapter_names))
        # Only k numbers per token are kept for the backward pass, not F.
        precision = torch.promote_types(hidden.dtype, torch.float32)
        chosen = (hidden[..., index].to(precision) * self.scale(adapter_names[0])).to(hidden.dtype)  # (..., k)
        scaled = hidden.clone()  # (..., F)
        scaled[..., index] = chosen
        return scaled

    def combined_scale(self, adapter_names: list[str], *, factors: Mapping[str, float] | None = None) -> Tensor:
        """
        Scales of all neurons under several adapters, `1 + sum(strength * delta)`, shape `(width,)`, float32.

        Args:
            adapter_names (`list[str]`): The adapters.
            factors (`Mapping[str, float]`, *optional*): More strengths, which multiply those of the dials.
        """
        total: Tensor | None = None
        for name in adapter_names:
            change = self.change_of(name)
            if factors is not None:
                change = change * factors.get(name, 1.0)
            if total is None:
                total = torch.ones(self.width, device=change.device, dtype=change.dtype)
            # In place, as a copy of all neurons per adapter would cost more than scaling them.
            total = total.index_add_(0, self.neurontune_index[name], change.to(total.dtype))
        assert total is not None, "callers name at least one adapter"
        return total

    def scale_neurons_by_row(self, hidden: Tensor, plan: RowPlan) -> Tensor:
        """
        As [`scale_neurons`], with adapter and strength of each row taken from a plan.

        Args:
            hidden (`torch.Tensor`): Shape `(R, ..., width)`, where the R rows repeat the plan's B rows in order.
            plan (`RowPlan`): What each row asks for.

        Returns:
            `torch.Tensor`: A new tensor of the same shape and dtype.
        """
        if not (torch.is_grad_enabled() or is_slow_to_cast(hidden)):
            return multiplied(hidden, plan.expanded(self.dense_table_for(plan), hidden))
        index, table = self.table_for(plan)  # (U,), (B, U)
        precision = torch.promote_types(hidden.dtype, torch.float32)
        chosen = (hidden[..., index].to(precision) * plan.expanded(table, hidden)).to(hidden.dtype)  # (R, ..., U)
        scaled = hidden.clone()  # (R, ..., F)
        scaled[..., index] = chosen
        return scaled

    def table_for(self, plan: RowPlan) -> tuple[Tensor, Tensor]:
        """[`row_scales`], worked out once per call."""
        if id(self) not in plan.tables:
            plan.tables[id(self)] = self.row_scales(plan)
        return plan.tables[id(self)]

    def dense_table_for(self, plan: RowPlan) -> Tensor:
        """Scales of all neurons for each row, shape `(B, width)`, worked out once per call."""
        if id(self) not in plan.dense_tables:
            index, table = self.row_scales(plan)
            dense = torch.ones(len(table), self.width, device=table.device, dtype=table.dtype)
            plan.dense_tables[id(self)] = dense.index_copy_(1, index.long(), table)
        return plan.dense_tables[id(self)]

    def row_scales(self, plan: RowPlan) -> tuple[Tensor, Tensor]:
        """
        Neurons that any row of a plan scales, and by how much each row scales them.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Indices of shape `(U,)`, and scales of shape `(B, U)`, float32.
        """
        held = self.acting_in(plan)
        if len(held) == 1:
            index = self.neurontune_index[held[0]]
            changes = self.change_of(held[0]).unsqueeze(0)  # (A, U)
        else:
            index, places = self.union_of(held)
            strengths = torch.cat([self.neurontune_strength[name] for name in held])
            deltas = torch.cat([self.neurontune_delta[name] for name in held])
            changes = torch.zeros(len(held) * len(index), device=index.device)
            changes = changes.index_copy(0, places, (strengths * deltas).float()).view(len(held), len(index))
        factors = plan.factors(held, changes.device)  # (A, B)
        if plan.adapter_names is None:
            if factors is None:
                table = changes.sum(dim=0, keepdim=True).expand(plan.rows, -1)  # (B, U)
            else:
                table = (factors.unsqueeze(-1) * changes.unsqueeze(1)).sum(dim=0)  # (B, U)
        else:  # one more row of zeros for requests whose adapter has no neurons here
            place = [held.index(name) if name in held else len(held) for name in plan.adapter_names]
            rows = torch.tensor(place, device=changes.device)
            table = torch.cat([changes, torch.zeros_like(changes[:1])]).index_select(0, rows)
            if factors is not None:
                own = torch.cat([factors, torch.ones_like(factors[:1])])
                table = own.gather(0, rows.unsqueeze(0)).T * table
        if plan.strengths is not None:
            table = plan.strengths.to(table.device).unsqueeze(1) * table
        return index, 1 + table

    def union_of(self, adapter_names: list[str]) -> tuple[Tensor, Tensor]:
        """
        The neurons of several adapters, and where each adapter's neurons stand among them.

        Kept until an adapter's indices change, as sorting them anew for each call would cost more than scaling.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Indices of shape `(U,)`, and for each adapter's neurons in turn their
            places in a table of shape `(A, U)`, flattened.
        """
        held = [self.neurontune_index[name] for name in adapter_names]
        key = tuple((id(index), index._version, index.device) for index in held)
        if self._union is None or self._union[0] != key:
            union = torch.cat(held).unique()
            places = [row * len(union) + torch.searchsorted(union, index) for row, index in enumerate(held)]
            # Holding the indices keeps their ids from being given to others.
            self._union = (key, held, union, torch.cat(places))
        return self._union[2], self._union[3]

    def acting(self, adapter_names: Iterable[str]) -> list[str]:
        """Those of the adapters that have neurons here, as far as their tensors were loaded."""
        if self._unchecked and not torch.compiler.is_compiling():
            self.check_loaded()
        return [name for name in adapter_names if name in self.neurontune_delta and name not in self._unchecked]

    def acts_on(self, plan: RowPlan) -> bool:
        """Whether any row of a plan scales neurons of this layer."""
        return bool(self.acting_in(plan))

    def acting_in(self, plan: RowPlan) -> list[str]:
        """The adapters of a plan's rows that have neurons here and do not rest."""
        names = self.active_adapters if plan.adapter_names is None else sorted(set(plan.adapter_names))
        return self.acting(name for name in names if name not in plan.resting)

    def scaled(self, hidden: Tensor) -> Tensor:
        """Neurons under the adapters that act now: those of the call's row plan, or else the active ones."""
        plan = CURRENT.plan
        if plan is not None:
            for reading in plan.readings:
                reading.read(self, hidden)
            return self.scale_neurons_by_row(hidden, plan) if self.acts_on(plan) else hidden
        names = [] if self.merged else self.acting(self.active_adapters)
        return self.scale_neurons(hidden, names) if names else hidden


def multiplied(hidden: Tensor, scale: Tensor) -> Tensor:
    """
    Neurons times scales, in float32 or wider and rounded once.

    Args:
        hidden (`torch.Tensor`): Shape `(..., F)`.
        scale (`torch.Tensor`): Shape `(F,)`, or with rows of their own, float32 or wider.

    Returns:
        `torch.Tensor`: Shape and dtype of `hidden`.
    """
    if torch.promote_types(hidden.dtype, scale.dtype) == hidden.dtype:
        return hidden * scale
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (hidden * scale).to(hidden.dtype)
    # One kernel, which computes in the wider type and writes the narrower.
    return torch.mul(hidden, scale, out=torch.empty_like(hidden))


def is_slow_to_cast(hidden: Tensor) -> bool:
    """On a CPU, mixing half precision with float32 takes longer than picking the selected neurons out."""
    return hidden.device.type == "cpu" and hidden.dtype in (torch.bfloat16, torch.float16)
