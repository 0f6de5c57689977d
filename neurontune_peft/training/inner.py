"""What is learnt from one attack family? The gradient of refusing it, after inner steps on it or without.

Nothing here knows of language models: losses are functions of the trained numbers, so that the arithmetic can be
checked on problems whose answer is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import Deltas

Values = Sequence[Tensor]  # the deltas, per site (k,)
Loss = Callable[[Values], Tensor]  # a scalar
Place = Callable[[Values], AbstractContextManager[None]]


def anywhere(values: Values) -> AbstractContextManager[None]:
    """The place of losses that are plain functions of the values."""
    return nullcontext()


@dataclass(frozen=True)
class Task:
    """
    What one attack family asks for, as losses of the deltas.

    Args:
        family (`str`): The attack family.
        support (`Callable`): Loss of the inner steps.
        query (`Callable`): Loss after them.
        costs (`Callable`): What the deltas cost elsewhere: `"kl"`, `"nll"`, and each budget's value by its name.
        plain (`Callable`, *optional*): Loss of refusing plain harmful prompts.
        rows (`tuple[int, int]`, *optional*, defaults to `(1, 1)`): Prompts of support and query set.
        safety_at (`Callable`, *optional*):
            Context in which support, query and plain losses see given values; it stays open during the backward pass.
        costs_at (`Callable`, *optional*): The same for the costs; the place of the other losses when left out.
    """

    family: str
    support: Loss
    query: Loss
    costs: Callable[[Values], Mapping[str, Tensor]]
    plain: Loss | None = None
    rows: tuple[int, int] = (1, 1)
    safety_at: Place = anywhere
    costs_at: Place | None = None


@dataclass(frozen=True)
class Attacked:
    """
    Loss of refusing attacked prompts.

    Args:
        loss (`float`): The loss, nats per token.
        gradients (`Sequence[torch.Tensor]`): Its gradient at the deltas, per site `(k,)`.
        inner (`tuple[float, ...]`): Loss on the support set before each inner step.
    """

    loss: float
    gradients: Values
    inner: tuple[float, ...] = ()


def attacked_gradient(deltas: Deltas, task: Task, config: MetaConfig) -> Attacked:
    """Gradient of refusing a family's attacked prompts, as `config.order` says."""
    ways = {"none": joint, "reptile": along_inner_steps}
    return ways.get(config.order, through_inner_steps)(deltas, task, config)


def joint(deltas: Deltas, task: Task, config: MetaConfig) -> Attacked:
    """Without meta-learning: support and query set are one set, and no inner step is made."""
    values, rows = deltas.parameters, sum(task.rows)
    total, gradients = 0.0, [torch.zeros_like(value) for value in values]
    for part, count in zip((task.support, task.query), task.rows, strict=True):
        with task.safety_at(values):  # one after the other: only one graph is alive
            loss = part(values) * (count / rows)
            found = torch.autograd.grad(loss, values)
        gradients = [summed + gradient for summed, gradient in zip(gradients, found, strict=True)]
        total += loss.item()
    return Attacked(total, gradients)


def through_inner_steps(deltas: Deltas, task: Task, config: MetaConfig) -> Attacked:
    """Loss of the query set after the inner steps, and its gradient: there (first order) or through them (second)."""
    second = config.order == "second"
    start: Values = deltas.parameters
    values = start
    inner: list[float] = []
    at_deltas: list[Tensor] = []
    with kernel_with_second_derivative(second):
        for _ in range(config.inner_steps):
            with task.safety_at(values):
                loss = task.support(values)
                gradients = torch.autograd.grad(loss, values, create_graph=second)
            at_deltas = at_deltas or [g.detach() for g in gradients]
            values = inner_step(deltas, values, gradients, config.inner_lr, keep_graph=second)
            inner.append(loss.item())
        for _ in range(config.finetune_steps):  # somebody fine-tunes the refusals away
            with task.safety_at(values):
                gradients = torch.autograd.grad(task.support(values), values, create_graph=second)
            values = inner_step(deltas, values, gradients, -config.inner_lr, keep_graph=second)
        with task.safety_at(values):
            loss = task.query(values)
            gradients = torch.autograd.grad(loss, start if second else values)
    total = [g + config.support_weight * at for g, at in zip(gradients, at_deltas, strict=True)]
    return Attacked(loss.item(), total, tuple(inner))


def along_inner_steps(deltas: Deltas, task: Task, config: MetaConfig) -> Attacked:
    """
    The mean gradient of the inner steps, which take turns on support and query set: Reptile (arXiv 1803.02999, its sum
    over the steps divided by their number; that steps are of one length and gradients are not is *ours*).
    """
    values: Values = deltas.parameters
    inner: list[float] = []
    total = [torch.zeros_like(value) for value in values]
    for number in range(config.inner_steps):
        part = task.query if number % 2 else task.support
        with task.safety_at(values):
            loss = part(values)
            gradients = torch.autograd.grad(loss, values)
        total = [summed + gradient for summed, gradient in zip(total, gradients, strict=True)]
        values = inner_step(deltas, values, gradients, config.inner_lr, keep_graph=False)
        inner.append(loss.item())
    return Attacked(inner[-1], [summed / config.inner_steps for summed in total], tuple(inner))


def inner_step(deltas: Deltas, values: Values, gradients: Values, lr: float, *, keep_graph: bool) -> list[Tensor]:
    """
    One step down the gradient whose root mean square over all deltas is `lr`, then projection into the bounds.

    Args:
        deltas ([`Deltas`]): The bounds.
        values (`Sequence[torch.Tensor]`): Where the step starts, per site `(k,)`.
        gradients (`Sequence[torch.Tensor]`): The gradient there.
        lr (`float`): Size of the step; a negative one climbs.
        keep_graph (`bool`): Whether later gradients go through the step.
    """
    count = sum(gradient.numel() for gradient in gradients)
    square = torch.stack([gradient.square().sum() for gradient in gradients]).sum() / count
    size = lr / (square + torch.finfo(square.dtype).tiny).sqrt()
    moved = deltas.project([v - size * g for v, g in zip(values, gradients, strict=True)])
    return moved if keep_graph else [value.detach().requires_grad_() for value in moved]


@contextmanager
def kernel_with_second_derivative(needed: bool) -> Iterator[None]:
    """Attention in the one kernel that can be differentiated twice; flash attention has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH) if needed else nullcontext():
        yield
