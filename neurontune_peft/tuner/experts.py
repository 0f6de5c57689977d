"""Neurons inside fused experts: an exact linear correction of the experts' output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurontune_peft.tuner.merge import MergeableLayer
from neurontune_peft.tuner.rows import CURRENT

if TYPE_CHECKING:
    from neurontune_peft.tuner.trigger import Reading


@dataclass(frozen=True)
class ExpertsLayout:
    """
    How a fused-experts module stores E experts of I neurons each over H features.

    Args:
        transposed (`bool`): `gate_up_proj` is `(E, H, 2I)` and `down_proj` `(E, I, H)`, instead of `(E, 2I, H)` and
            `(E, H, I)`.
        gated (`bool`): There is a gate; otherwise `up_proj` stands in place of `gate_up_proj`.
        concatenated (`bool`): Gates stand before ups; otherwise they alternate.
        biased (`bool`): Projections have biases.
        routed (`bool`): The module takes the routing and weighs each expert's answer; otherwise its input comes sorted
            by expert, with all tokens for each.
    """

    transposed: bool = False
    gated: bool = True
    concatenated: bool = True
    biased: bool = False
    routed: bool = True


def experts_layout(module: nn.Module, name: str = "") -> ExpertsLayout | None:
    """
    Recognise a fused-experts module.

    Args:
        module (`nn.Module`): Any module.
        name (`str`, *optional*): Its path, for messages.

    Returns:
        `ExpertsLayout` or `None`: `None` when the module holds no 3-D `down_proj`.

    Raises:
        ValueError: When it holds fused experts of an unknown layout.
    """
    down = getattr(module, "down_proj", None)
    if not isinstance(down, Tensor) or down.ndim != 3:
        return None
    kind = type(module).__name__
    if kind == "Llama4TextExperts":
        return ExpertsLayout(transposed=True, routed=False)
    if kind == "LongcatFlashExperts":
        return ExpertsLayout()
    flags = [getattr(module, flag, None) for flag in ("is_transposed", "has_gate", "is_concatenated", "has_bias")]
    # These flags are set by transformers' decorator `use_experts_implementation`, which fixes the forward pass too.
    if (
        None in flags
        or getattr(module, "has_post_expert_norm", False)
        or getattr(module, "_is_expert_parallel", False)
    ):
        raise ValueError(
            f"got fused experts of class {kind} at '{name}', whose layout is unknown; expected a class with "
            "transformers' experts interface, no norm after each expert and no expert parallelism; leave it out of "
            "target_modules"
        )
    transposed, gated, concatenated, biased = (bool(flag) for flag in flags)
    return ExpertsLayout(transposed=transposed, gated=gated, concatenated=concatenated, biased=biased)


def experts_shape(module: nn.Module, layout: ExpertsLayout) -> tuple[int, int]:
    """Number of experts E and neurons per expert I."""
    down: Any = module.down_proj
    return down.shape[0], down.shape[1 if layout.transposed else 2]


class Experts(MergeableLayer):
    """
    Fused experts with scaled neurons; neuron `j` of expert `e` has the index `e * I + j`.

    The module's output is linear in each neuron's activation, so scaling a neuron by `1 + d` adds `d` times what the
    neuron contributes: `(h * R * d) @ W_down`, where `h` is recomputed for the selected neurons only and `R` holds the
    routing weights of their experts (`ours`).
    """

    def __init__(self, base_layer: nn.Module, *, layout: ExpertsLayout) -> None:
        experts, size = experts_shape(base_layer, layout)
        super().__init__(base_layer, width=experts * size)
        self.layout, self.expert_size = layout, size

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(hidden_states, *args, **kwargs)
        routing = (*args, *kwargs.values())[:2]
        for reading in () if CURRENT.plan is None else CURRENT.plan.readings:
            self.read_trigger(hidden_states, routing, reading)
        output = self.base_layer(hidden_states, *args, **kwargs)
        change = self.change(hidden_states)
        if change is None:
            return output
        index, factors = change
        return output + self.correction(hidden_states, index, factors, routing).to(output.dtype)

    def change(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """
        Neurons that are scaled now and their scales - 1.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` or `None`: Indices `(U,)`, and factors `(1, U)` or one row per token.
        """
        plan = CURRENT.plan
        if plan is not None:
            if not self.acts_on(plan):
                return None
            index, table = self.table_for(plan)
            per_token = hidden if self.layout.routed else hidden[: hidden.shape[0] // (self.width // self.expert_size)]
            return index, plan.expanded(table, per_token) - 1
        names = [] if self.merged else self.acting(self.active_adapters)
        if not names:
            return None
        if len(names) == 1:
            return self.neurontune_index[names[0]], self.change_of(names[0]).unsqueeze(0)
        index = torch.cat([self.neurontune_index[name] for name in names]).unique()
        return index, (self.combined_scale(names)[index] - 1).unsqueeze(0)

    def correction(self, hidden: Tensor, index: Tensor, factors: Tensor, routing: tuple[Any, ...]) -> Tensor:
        """
        What scaling adds to the module's output.

        Args:
            hidden (`torch.Tensor`): Input of the module, `(N, H)`; `(E * N, H)` when it comes sorted by expert.
            index (`torch.Tensor`): Neurons, `(U,)`.
            factors (`torch.Tensor`): Scales - 1, `(1, U)` or `(N, U)`.
            routing (`tuple`): Experts of each token `(N, K)` and their weights `(N, K)`; empty for sorted input.

        Returns:
            `torch.Tensor`: Shape of `hidden`.
        """
        if routing and self.few_experts_act(routing[0]):
            acts = torch.isin(index // self.expert_size, routing[0])  # (U,)
            index, factors = index[acts], factors[:, acts]
        expert, neuron = index // self.expert_size, index % self.expert_size  # (U,)
        down = self.down_slices(expert, neuron)  # (U, H)
        if not self.layout.routed:
            return self.sorted_correction(hidden, expert, neuron, factors, down)
        experts_of_token, weights = routing
        activation = self.activation(hidden, expert, neuron)  # (N, U)
        chosen = experts_of_token.unsqueeze(-1) == expert  # (N, K, U)
        share = (weights.unsqueeze(-1) * chosen).sum(dim=1)  # (N, U)
        scaled = activation.float() * share.float() * factors.to(activation.device)
        return scaled.to(down.dtype) @ down

    def read_trigger(self, hidden: Tensor, routing: tuple[Any, ...], reading: Reading) -> None:
        """
        Give a trigger the activations of its neurons, times the routing weights of their experts.

        Args:
            hidden (`torch.Tensor`): As in [`Experts.correction`].
            routing (`tuple`): As in [`Experts.correction`].
            reading ([`Reading`]): What is to be read, at Q positions.
        """
        if not self.acting((reading.name,)):
            return
        index = self.neurontune_index[reading.name].long()
        places = reading.flat_positions.to(hidden.device)  # (Q,)
        if reading.turn is None:
            reading.add(self, self.routed_activation(hidden, routing, index, places), None)
        else:
            over = self.routed_activation(hidden, routing, index, slice(None))  # (N, k)
            reading.add(self, over[places], over)

    def routed_activation(
        self, hidden: Tensor, routing: tuple[Any, ...], index: Tensor, places: Tensor | slice
    ) -> Tensor:
        """
        Activations of selected neurons at some tokens, times the routing weights of their experts.

        Args:
            hidden (`torch.Tensor`): As in [`Experts.correction`].
            routing (`tuple`): As in [`Experts.correction`].
            index (`torch.Tensor`): Neurons, `(k,)`, int64.
            places (`torch.Tensor` or `slice`): Tokens.

        Returns:
            `torch.Tensor`: Shape `(Q, k)`, float32.
        """
        expert, neuron = index // self.expert_size, index % self.expert_size  # (k,)
        if self.layout.routed:
            experts_of_token, weights = (part[places] for part in routing)  # (Q, K)
            chosen = experts_of_token.unsqueeze(-1) == expert  # (Q, K, k)
            share = (weights.unsqueeze(-1) * chosen).sum(dim=1).float()  # (Q, k)
            return self.activation(hidden[places], expert, neuron).float() * share
        # The input holds the routing weights already.
        rows = hidden.view(self.width // self.expert_size, -1, hidden.shape[-1])
        return self.activation(rows[:, places][expert], expert, neuron).float().T

    def few_experts_act(self, experts_of_token: Tensor) -> bool:
        """
        Whether to look at the neurons of the routed experts alone, as a decode step of a few rows routes to few.

        The number of these neurons depends on the data. Reading it back would make a GPU wait, and break a graph.
        """
        if experts_of_token.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        return experts_of_token.numel() < self.width // self.expert_size

    def sorted_correction(
        self, hidden: Tensor, expert: Tensor, neuron: Tensor, factors: Tensor, down: Tensor
    ) -> Tensor:
        """The same for input sorted by expert, `(E * N, H)`: a neuron changes the rows of its own expert only."""
        count = self.width // self.expert_size
        rows = hidden.view(count, -1, hidden.shape[-1])[expert]  # (U, N, H)
        activation = self.activation(rows, expert, neuron)  # (U, N)
        scaled = (activation.float() * factors.to(activation.device).T).to(down.dtype)  # (U, N)
        change = torch.zeros_like(hidden).view(count, -1, hidden.shape[-1])
        return change.index_add(0, expert, scaled.unsqueeze(-1) * down.unsqueeze(1)).view_as(hidden)

    def activation(self, hidden: Tensor, expert: Tensor, neuron: Tensor) -> Tensor:
        """
        Activations of selected neurons, as the module itself computes them.

        Args:
            hidden (`torch.Tensor`): `(N, H)` for all neurons alike, or `(U, N, H)` with rows of their own for each.
            expert (`torch.Tensor`): Expert of each neuron, `(U,)`.
            neuron (`torch.Tensor`): Place within its expert, `(U,)`.

        Returns:
            `torch.Tensor`: `(N, U)`, or `(U, N)` for rows of their own.
        """
        layout, base = self.layout, cast(Any, self.get_base_layer())
        if not layout.gated:
            return base.act_fn(self.project("up_proj", hidden, expert, neuron))
        places = (neuron, neuron + self.expert_size) if layout.concatenated else (2 * neuron, 2 * neuron + 1)
        gate, up = (self.project("gate_up_proj", hidden, expert, place) for place in places)
        if not hasattr(base, "_apply_gate"):
            return base.act_fn(gate) * up
        if layout.concatenated:
            return base._apply_gate(torch.cat([gate, up], dim=-1))
        return base._apply_gate(torch.stack([gate, up], dim=-1).flatten(-2))

    def project(self, name: str, hidden: Tensor, expert: Tensor, place: Tensor) -> Tensor:
        """Inner products of hidden states with selected rows of a projection: `(N, U)`, or `(U, N)`."""
        base: Any = self.get_base_layer()
        weight = getattr(base, name)
        rows = weight[expert, :, place] if self.layout.transposed else weight[expert, place]  # (U, H)
        if hidden.ndim == 3:
            return torch.einsum("unh,uh->un", hidden, rows)
        return F.linear(hidden, rows, getattr(base, f"{name}_bias")[expert, place] if self.layout.biased else None)

    def down_slices(self, expert: Tensor, neuron: Tensor) -> Tensor:
        """Rows of the down projection that neurons write to, `(U, H)`."""
        base: Any = self.get_base_layer()
        return base.down_proj[expert, neuron] if self.layout.transposed else base.down_proj[expert, :, neuron]

    def read_slices(self, index: Tensor) -> dict[str, Tensor]:
        return {"down_proj": self.down_slices(index // self.expert_size, index % self.expert_size).detach().clone()}

    def write_slices(self, slices: Mapping[str, Tensor], index: Tensor) -> None:
        base: Any = self.get_base_layer()
        weight = base.down_proj.data
        place = index.to(weight.device)
        expert, neuron = place // self.expert_size, place % self.expert_size
        if self.layout.transposed:
            weight[expert, neuron] = slices["down_proj"].to(weight)
        else:
            weight[expert, :, neuron] = slices["down_proj"].to(weight)
