"""Neurons inside fused experts, made readable and changeable: one expert after the other, in plain matrix products.

Fused experts never hold the activations of their neurons in a module of their own. While [`replaced_experts`] is open,
their forward pass is an equal one, exact up to rounding, into which attribution can look and reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.tuner.experts import Experts, ExpertsLayout, experts_layout, experts_shape
from neurontune_peft.tuner.targets import base_of

# (expert, tokens (n,), activations (n, I)) -> (n, I): what an expert's neurons shall be for its tokens.
Edit = Callable[[int, Tensor, Tensor], Tensor]
# (expert, tokens (n,), activations weighted by routing (n, I), what they add to the output (n, H)) -> another (n, H)
See = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Routing:
    """
    S assignments of tokens to experts, sorted by expert.

    Args:
        expert (`torch.Tensor`): Experts, `(S,)`.
        token (`torch.Tensor`): Their tokens, `0 … N-1`, `(S,)`.
        source (`torch.Tensor`): Rows of the module's input, `(S,)`.
        slot (`torch.Tensor`): Rows of the answers before they are summed, `(S,)`.
        share (`torch.Tensor`, *optional*): Routing weights, `(S, 1)`; `None` where the input is weighted already.
        per_row (`int`): Answers that are summed for each row of the output.
    """

    expert: Tensor
    token: Tensor
    source: Tensor
    slot: Tensor
    share: Tensor | None
    per_row: int

    @classmethod
    def chosen(cls, experts: Tensor, weights: Tensor) -> Routing:
        """Of a module that is told the experts of each token, `(N, K)`, and their weights, `(N, K)`."""
        flat, count = experts.reshape(-1), experts.shape[1]
        order = flat.argsort(stable=True)
        token = order // count
        return cls(flat[order], token, token, order, weights.reshape(-1, 1)[order], count)

    @classmethod
    def by_input(cls, hidden: Tensor, experts: int) -> Routing:
        """Of input sorted by expert, `(E * N, H)`: tokens are zero for the experts to which they do not go."""
        hit = hidden.detach().view(experts, -1, hidden.shape[-1]).ne(0).any(dim=-1)  # (E, N)
        expert, token = hit.nonzero(as_tuple=True)
        row = expert * hit.shape[1] + token
        return cls(expert, token, row, row, None, 1)


@dataclass(frozen=True)
class ExpertsCall:
    """
    One call of a fused-experts module.

    Args:
        base (`nn.Module`): The module, below any adapter.
        layout (`ExpertsLayout`): How it stores its experts.
        hidden (`torch.Tensor`): Its input, `(N, H)`, or `(E * N, H)` sorted by expert.
        routing (`Routing`): Which token goes to which expert.
        change (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Neurons that an adapter scales, `(U,)`, and their scales - 1, `(1, U)` or `(N, U)`.
    """

    base: nn.Module
    layout: ExpertsLayout
    hidden: Tensor
    routing: Routing
    change: tuple[Tensor, Tensor] | None = None

    @property
    def size(self) -> int:
        """`int`: Neurons of one expert, I."""
        return experts_shape(self.base, self.layout)[1]

    @property
    def tokens(self) -> int:
        """`int`: Number of tokens, N."""
        experts = 1 if self.layout.routed else experts_shape(self.base, self.layout)[0]
        return self.hidden.shape[0] // experts

    def run(self, edit: Edit | None = None, see: See | None = None) -> Tensor:
        """
        What the module would return, `(N, H)` or `(E * N, H)`.

        Args:
            edit (`Callable`, *optional*): Changes the activations of each expert's neurons.
            see (`Callable`, *optional*):
                Is shown them, as they are after the change and an adapter's scaling, and may replace what they add.
        """
        answers, start, routing = [], 0, self.routing
        experts, counts = routing.expert.unique_consecutive(return_counts=True)
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            part = slice(start, start + count)
            share = None if routing.share is None else routing.share[part]
            answers.append(
                self.answer(expert, routing.token[part], self.hidden[routing.source[part]], share, edit, see)
            )
            start += count
        rows = self.hidden.shape[0] * routing.per_row
        found = torch.cat(answers)  # (S, H)
        # Not index_add, whose order of additions varies on GPUs.
        spread = found.new_zeros(rows, found.shape[1]).index_copy(0, routing.slot, found)
        return spread.view(-1, routing.per_row, found.shape[1]).sum(dim=1).to(self.hidden.dtype)

    def answer(
        self, expert: int, token: Tensor, hidden: Tensor, share: Tensor | None, edit: Edit | None, see: See | None
    ) -> Tensor:
        """What one expert adds to the output for its tokens, `(n, H)`."""
        if expert >= experts_shape(self.base, self.layout)[0]:  # LongCat's experts without weights hand tokens on
            return hidden if share is None else hidden * share
        activations = self.activations(expert, hidden)  # (n, I)
        if edit is not None:
            activations = edit(expert, token, activations)
        activations = self.scaled(expert, token, activations)
        answer = self.write(expert, activations)
        if self.layout.biased:
            answer = answer + self._weight("down_proj_bias", expert)
        answer = answer if share is None else answer * share
        if see is None:
            return answer
        replaced = see(expert, token, activations if share is None else activations * share, answer)
        return answer if replaced is None else replaced

    def activations(self, expert: int, hidden: Tensor) -> Tensor:
        """Activations of one expert's neurons, `(n, H)` -> `(n, I)`."""
        base: Any = self.base
        name = "gate_up_proj" if self.layout.gated else "up_proj"
        weight = self._weight(name, expert)
        found = hidden @ (weight if self.layout.transposed else weight.T)  # (n, 2I) or (n, I)
        if self.layout.biased:
            found = found + self._weight(f"{name}_bias", expert)
        if not self.layout.gated:
            return base.act_fn(found)
        if hasattr(base, "_apply_gate"):
            return base._apply_gate(found)
        gate, up = found.chunk(2, dim=-1)
        return base.act_fn(gate) * up

    def scaled(self, expert: int, token: Tensor, activations: Tensor) -> Tensor:
        """Activations of one expert's neurons as an adapter scales them, `(n, I)`."""
        if self.change is None:
            return activations
        index, factors = self.change
        mine = (index // self.size == expert).nonzero().flatten()
        rows = factors[:, mine] if factors.shape[0] == 1 else factors[token][:, mine]  # (1, u) or (n, u)
        scale = activations.new_ones(activations.shape, dtype=torch.promote_types(activations.dtype, torch.float32))
        scale = scale.index_add(1, index[mine] % self.size, rows.to(scale).expand(len(token), -1))
        return (activations.to(scale.dtype) * scale).to(activations.dtype)

    def write(self, expert: int, activations: Tensor) -> Tensor:
        """What activations of one expert's neurons add to the stream, without bias, `(n, I)` -> `(n, H)`."""
        weight = self._weight("down_proj", expert)
        return activations @ (weight if self.layout.transposed else weight.T)

    def _weight(self, name: str, expert: int) -> Tensor:
        return getattr(self.base, name)[expert]


@contextmanager
def replaced_experts(module: nn.Module, run: Callable[[ExpertsCall], Tensor]) -> Iterator[None]:
    """
    Let a function compute the output of a fused-experts module while the context is open. Of two such contexts for the
    same module, the inner one counts.

    Args:
        module (`nn.Module`): The experts, also inside an adapter's layer.
        run (`Callable`): Given the call, returns the output; [`ExpertsCall.run`] is the module's own.
    """
    base = base_of(module)
    layout = experts_layout(base)
    if layout is None:
        raise ValueError(f"got a {type(base).__name__}; expected fused experts; use the sites found in this model")
    own = module if isinstance(module, Experts) else None

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = (*args, *kwargs.values())[:2]
        experts = experts_shape(base, layout)[0]
        routing = Routing.chosen(*given) if layout.routed else Routing.by_input(hidden, experts)
        return run(ExpertsCall(base, layout, hidden, routing, None if own is None else _change(own, hidden)))

    with ExitStack() as stack:
        stack.enter_context(_forward_replaced(base, forward))
        if own is not None:  # the adapter's correction is part of `change`
            stack.enter_context(_forward_replaced(own, base))
        yield


def _change(layer: Experts, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    if layer.disable_adapters:
        if layer.merged:
            layer.unmerge()
        return None
    return layer.change(hidden)


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    # accelerate keeps the forward pass under its hooks, which bring offloaded weights, as `_old_forward`.
    held = vars(module)
    slot = "_old_forward" if "_old_forward" in held else "forward"
    before = held.get(slot)
    held[slot] = forward
    try:
        yield
    finally:
        if before is None:
            del held[slot]
        else:
            held[slot] = before


@contextmanager
def gated_experts(module: nn.Module, gate: Tensor) -> Iterator[None]:
    """
    Multiply the activations of experts' neurons by gates while the context is open.

    Args:
        module (`nn.Module`): The experts, also inside an adapter's layer.
        gate (`torch.Tensor`): Gates of B examples, `(B, E * I)`; tokens stand in the order of the examples.
    """
    with replaced_experts(module, partial(_run_gated, gate)):
        yield


def _run_gated(gate: Tensor, call: ExpertsCall) -> Tensor:
    gate = gate.to(call.hidden.device)
    per_example = call.tokens // gate.shape[0]

    def edit(expert: int, tokens: Tensor, activations: Tensor) -> Tensor:
        columns = gate[:, expert * call.size : (expert + 1) * call.size]  # (B, I)
        factor = columns[tokens // per_example]  # (n, I)
        precision = torch.promote_types(activations.dtype, factor.dtype)
        return (activations.to(precision) * factor).to(activations.dtype)

    return call.run(edit)
