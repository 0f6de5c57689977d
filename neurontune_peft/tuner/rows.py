"""Which adapter, and how strongly, for each row of a batch: the plan of one call and where layers find it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

if TYPE_CHECKING:
    from neurontune_peft.tuner.deciding import Call
    from neurontune_peft.tuner.trigger import Reading, TriggerDecision

BASE = "__base__"  # PEFT's name for a row without adapter


@dataclass(frozen=True)
class RowPlan:
    """
    What each row of a batch asks for.

    Args:
        rows (`int`): Number of requests, B.
        adapter_names (`tuple[str, ...]`, *optional*): Adapter of each row; the active ones for all rows by default.
        strengths (`torch.Tensor`, *optional*): Strength of each row, shape `(B,)`; 1 by default.
        tables (`dict`, *optional*): Scaled neurons and scales per layer, worked out once per call.
        dense_tables (`dict`, *optional*): Scales of all neurons per layer, worked out once per call.
        decided (`Mapping[str, torch.Tensor]`, *optional*):
            Strengths that triggers have decided on, adapter to a tensor of shape `(B,)`.
        resting (`frozenset[str]`, *optional*): Adapters that act on no row.
        acts (`torch.Tensor`, *optional*): Where in each row strengths act, `(B, T)`; everywhere by default.
        readings (`tuple[Reading, ...]`, *optional*): Collect what the neurons of some positions say, unscaled.
        call ([`Call`], *optional*): The call of the base model that this plan was made for.
    """

    rows: int
    adapter_names: tuple[str, ...] | None = None
    strengths: Tensor | None = None
    tables: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)
    dense_tables: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    decided: Mapping[str, Tensor] = field(default_factory=dict)
    resting: frozenset[str] = frozenset()
    acts: Tensor | None = None
    readings: tuple[Reading, ...] = field(default=(), compare=False, repr=False)
    call: Call | None = field(default=None, compare=False, repr=False)

    def factors(self, adapter_names: Sequence[str], device: torch.device) -> Tensor | None:
        """Strengths that triggers have decided on, shape `(A, B)`, 1 for adapters without; `None` without triggers."""
        if not self.decided:
            return None
        ones = torch.ones(self.rows, device=device)
        return torch.stack([self.decided[n].to(device) if n in self.decided else ones for n in adapter_names])

    def expanded(self, table: Tensor, hidden: Tensor) -> Tensor:
        """
        Repeat the rows of a table to those of a layer's input.

        Beams and several answers per request repeat each row, and some models flatten tokens into rows: either way the
        rows of one request stand one after the other.

        Args:
            table (`torch.Tensor`): Shape `(B, U)`.
            hidden (`torch.Tensor`): Shape `(R, ..., F)` with R a multiple of B.

        Returns:
            `torch.Tensor`: Shape `(R, 1, ..., U)`; with `acts` `(R, T, U)`, 1 where no strength acts.

        Raises:
            ValueError: When R is no multiple of B.
        """
        repeats, rest = divmod(hidden.shape[0], self.rows)
        if rest:
            raise ValueError(
                f"got a plan for {self.rows} rows and an input of {hidden.shape[0]}; expected one adapter name or "
                "strength per request; pass as many as there are requests in the batch"
            )
        rows = table.repeat_interleave(repeats, dim=0) if repeats > 1 else table  # (R, U)
        rows = rows.view(rows.shape[0], *[1] * (hidden.ndim - 2), rows.shape[1])
        if self.acts is None:
            return rows
        acts = self.acts.to(rows.device)  # (B, T)
        acts = acts.reshape(-1, 1) if hidden.ndim == 2 else acts.unsqueeze(-1)
        return torch.where(acts, rows, 1)


class Slot:
    """Holds the plan of one thread."""

    def __init__(self) -> None:
        self.plan: RowPlan | None = None
        self.observer: Callable[[list[TriggerDecision]], None] | None = None


class CurrentPlan(threading.local):
    """
    The plan of the running call, each thread its own: two threads that generate do not see each other's.

    Layers are called by the base model, which knows nothing of plans, so there is no argument to pass them through.
    `torch.compile` guards on the slot, and sees in a graph what hooks put into it; attributes of a `threading.local`
    itself that hooks set go unnoticed there.
    """

    def __init__(self) -> None:
        self.slot = Slot()

    @property
    def plan(self) -> RowPlan | None:
        """What the rows of the running call ask for."""
        return self.slot.plan

    @plan.setter
    def plan(self, plan: RowPlan | None) -> None:
        self.slot.plan = plan

    @property
    def observer(self) -> Callable[[list[TriggerDecision]], None] | None:
        """Who is told what triggers decide."""
        return self.slot.observer

    @observer.setter
    def observer(self, observer: Callable[[list[TriggerDecision]], None] | None) -> None:
        self.slot.observer = observer


CURRENT = CurrentPlan()


@contextmanager
def row_plan(plan: RowPlan | None) -> Iterator[None]:
    """Let the layers of this thread follow a plan for the duration of a `with` block."""
    before = CURRENT.plan
    CURRENT.plan = plan
    try:
        yield
    finally:
        CURRENT.plan = before


def make_plan(
    *, adapter_names: Sequence[str] | None, strengths: Any, known: Sequence[str], device: torch.device
) -> RowPlan | None:
    """
    Check what a call asks for.

    Args:
        adapter_names (`Sequence[str]`, *optional*): One name per request, or `"__base__"`.
        strengths (`Sequence[float]` or `torch.Tensor`, *optional*): One strength per request.
        known (`Sequence[str]`): Names of the attached adapters.
        device (`torch.device`): Where the layers compute.

    Raises:
        ValueError: When a name is unknown, a strength is not finite, or their numbers differ.
    """
    if adapter_names is None and strengths is None:
        return None
    names = None if adapter_names is None else tuple(adapter_names)
    unknown = sorted(set(names or ()) - set(known) - {BASE})
    if unknown:
        raise ValueError(
            f"got adapter_names with {unknown}; expected names among {[*known, BASE]}; load or add the adapter first"
        )
    values = None if strengths is None else torch.as_tensor(strengths, dtype=torch.float32, device=device).flatten()
    if values is not None and not torch.compiler.is_compiling() and not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"got neurontune_strength={values.tolist()}; expected finite numbers; 0 is the base model, 1 the adapter"
        )
    if names is not None and values is not None and len(names) != values.numel():
        raise ValueError(
            f"got {len(names)} adapter_names and {values.numel()} strengths; expected one of each per request; make "
            "them equally long"
        )
    rows = len(names) if names is not None else len(values) if values is not None else 0
    return RowPlan(rows=rows, adapter_names=names, strengths=values)


def check_row_count(plan: RowPlan | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """
    Refuse a plan for another number of requests than a call holds.

    Args:
        plan (`RowPlan`, *optional*): The plan.
        args (`tuple`): Positional arguments of the call; the first one holds the requests.
        kwargs (`dict`): Its keyword arguments.

    Raises:
        ValueError: Shows both numbers.
    """
    named = [kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds")]
    given = next((tensor for tensor in (*args[:1], *named) if tensor is not None), None)
    if plan is not None and given is not None and len(given) != plan.rows:
        raise ValueError(
            f"got adapter_names or strengths for {plan.rows} requests and a batch of {len(given)}; expected one per "
            "request; make them equally long"
        )


@contextmanager
def adapter_names_for_saved_modules(model: nn.Module, adapter_names: Sequence[str] | None) -> Iterator[None]:
    """Tell PEFT's wrappers of `modules_to_save`, which take the names as an argument, which row is whose."""

    def pass_names(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        names = list(adapter_names or ())
        repeats = len(args[0]) // len(names)
        return args, kwargs | {"adapter_names": [name for name in names for _ in range(repeats)]}

    wrappers = [m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper)] if adapter_names else []
    handles = [wrapper.register_forward_pre_hook(pass_names, with_kwargs=True) for wrapper in wrappers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
