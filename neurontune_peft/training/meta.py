"""How large are the scales? The loop that learns them over attack families."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

from neurontune_peft.objectives import TokenBatch, response_logits
from neurontune_peft.prompts import PromptSet, encode
from neurontune_peft.prompts.answers import evaluating
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import Deltas, find_deltas
from neurontune_peft.training.log import Log, StepLog
from neurontune_peft.training.losses import answer_loss, utility_losses
from neurontune_peft.training.refusals import refusal_texts
from neurontune_peft.training.tasks import Pairs, TaskSampler


@dataclass
class LoopState:
    """
    All that changes from step to step, apart from the deltas themselves: a run resumes from these.

    Args:
        optimizer (`torch.optim.Optimizer`): Adam over the deltas.
        step (`int`, *optional*, defaults to `0`): The next step.
        history (`list[StepLog]`, *optional*): The steps so far.
    """

    optimizer: torch.optim.Optimizer
    step: int = 0
    history: list[StepLog] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """One step's batches."""

    family: str
    support: TokenBatch
    query: TokenBatch
    plain: TokenBatch | None
    utility: TokenBatch


@dataclass(frozen=True)
class _Outer:
    """Gradients of the outer loss and what to log about it."""

    gradients: Sequence[Tensor]
    safety: float
    kl: float
    nll: float
    inner: tuple[float, ...] = ()


def meta_train(
    model: PeftModel,
    tokenizer: Any,
    prompts: PromptSet,
    config: MetaConfig | None = None,
    *,
    chat_template: str | None = None,
) -> Log:
    """
    Learn the scales of the active adapter, in place.

    Each step takes one attack family of the train split. Its *support set* moves the deltas `inner_steps` times; the
    gradient of refusing its *query set* there, and of refusing plain harmful prompts and answering benign, borderline
    and wrapped benign prompts as before at the deltas themselves, moves the deltas for good (Adam, then projection
    into the bounds). Only the deltas change; the model computes in evaluation mode and is put back afterwards.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompt set; its test split is not touched.
        config ([`MetaConfig`], *optional*): The options.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Log`]: The losses of each step.

    Raises:
        ValueError: When the adapter cannot be trained as it is, or the prompt set lacks what training needs.
        FloatingPointError: When a loss is NaN or infinite; the deltas are those of the step before.

    Example:

        ```py
        >>> log = meta_train(model, tokenizer, PromptSet.load(), MetaConfig(steps=100))
        >>> model.save_pretrained("adapter")
        ```
    """
    config = MetaConfig() if config is None else config
    deltas = find_deltas(model, config.bounds)
    with evaluating(model):  # dropout would drown the small effect of scales
        refusals = refusal_texts(model, tokenizer, prompts, source=config.refusal_targets, chat_template=chat_template)
        sampler = TaskSampler(prompts, config, refusals)
        state = LoopState(torch.optim.Adam(deltas.parameters, lr=config.lr))
        device = deltas.parameters[0].device
        bar = logging.tqdm(total=config.steps, desc="train scales", unit="step")
        with bar:
            while state.step < config.steps:
                data = sampler.draw(state.step)
                batches = {
                    name: _encode(tokenizer, getattr(data, name), device, chat_template)
                    for name in ("support", "query", "plain", "utility")
                }
                _advance(model, deltas, _Step(data.family, **batches), config, state)  # type: ignore[arg-type]
                bar.set_postfix(safety=f"{state.history[-1].safety:.3f}", kl=f"{state.history[-1].kl:.4f}")
                bar.update()
    return Log(steps=tuple(state.history), config=config.to_dict(), prompt_set=prompts.fingerprint)


def _encode(tokenizer: Any, pairs: Pairs, device: torch.device, chat_template: str | None) -> TokenBatch | None:
    if not pairs:
        return None
    batch = encode(tokenizer, [p for p, _ in pairs], [a for _, a in pairs], chat_template=chat_template)
    return batch.to(device)


def _advance(model: PeftModel, deltas: Deltas, step: _Step, config: MetaConfig, state: LoopState) -> None:
    """One outer step: gradient, update, projection."""
    outer = _outer_gradient(model, deltas, step, config)
    utility = config.kl_weight * outer.kl + config.nll_weight * outer.nll
    finite = torch.isfinite(torch.tensor([outer.safety, utility, *outer.inner])).all()
    if not finite or not all(torch.isfinite(gradient).all() for gradient in outer.gradients):
        raise FloatingPointError(
            f"got a loss or gradient that is NaN or infinite at step {state.step} (family '{step.family}', safety "
            f"{outer.safety}, utility {utility}); expected finite numbers; lower lr, or load the model in float32"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * (1 - state.step / config.steps)
    for parameter, gradient in zip(deltas.parameters, outer.gradients, strict=True):
        parameter.grad = gradient
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    deltas.project_()
    state.history.append(
        StepLog(state.step, step.family, outer.safety, utility, outer.kl, outer.nll, inner=outer.inner)
    )
    state.step += 1


def _outer_gradient(model: PeftModel, deltas: Deltas, step: _Step, config: MetaConfig) -> _Outer:
    """Gradient of the outer loss: attacked prompts after the inner steps, everything else at the deltas themselves."""
    attacked = _joint if config.order == "none" else _through_inner_steps
    query, gradients, inner = attacked(model, deltas, step, config)
    with torch.no_grad(), model.disable_adapter():
        base_logits = response_logits(model, step.utility)  # (N, V)
    first = config.first_token_weight
    kl, nll = utility_losses(model, step.utility, base_logits, first_token_weight=first)
    loss = config.utility_weight * (config.kl_weight * kl + config.nll_weight * nll)
    plain = loss.new_zeros(())
    if step.plain is not None:
        plain = config.plain_weight * answer_loss(model, step.plain, first_token_weight=first)
    others = torch.autograd.grad(loss + plain, deltas.parameters)
    return _Outer(
        gradients=[one + other for one, other in zip(gradients, others, strict=True)],
        safety=query + plain.item(),
        kl=kl.item(),
        nll=nll.item(),
        inner=inner,
    )


def _joint(
    model: PeftModel, deltas: Deltas, step: _Step, config: MetaConfig
) -> tuple[float, Sequence[Tensor], tuple[float, ...]]:
    """Without meta-learning: support and query set are one set, and no inner step is made."""
    first = config.first_token_weight
    parts = [(batch, batch.input_ids.shape[0]) for batch in (step.support, step.query)]
    rows = sum(count for _, count in parts)
    losses = [answer_loss(model, batch, first_token_weight=first) * (count / rows) for batch, count in parts]
    loss = torch.stack(losses).sum()
    return loss.item(), torch.autograd.grad(loss, deltas.parameters), ()


def _through_inner_steps(
    model: PeftModel, deltas: Deltas, step: _Step, config: MetaConfig
) -> tuple[float, Sequence[Tensor], tuple[float, ...]]:
    """Loss of the query set after the inner steps, and its gradient: there (first order) or through them (second)."""
    second = config.order == "second"
    first = config.first_token_weight
    start: Sequence[Tensor] = deltas.parameters
    values = start
    inner: list[float] = []
    at_deltas: list[Tensor] = []
    # Flash attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH) if second else nullcontext():
        for _ in range(config.inner_steps):
            with deltas.replaced_by(values):
                loss = answer_loss(model, step.support, first_token_weight=first)
                gradients = torch.autograd.grad(loss, values, create_graph=second)
            at_deltas = at_deltas or [g.detach() for g in gradients]
            values = _inner_step(deltas, values, gradients, config.inner_lr, keep_graph=second)
            inner.append(loss.item())
        with deltas.replaced_by(values):
            loss = answer_loss(model, step.query, first_token_weight=first)
            gradients = torch.autograd.grad(loss, start if second else values)
    total = [g + config.support_weight * at for g, at in zip(gradients, at_deltas, strict=True)]
    return loss.item(), total, tuple(inner)


def _inner_step(
    deltas: Deltas, values: Sequence[Tensor], gradients: Sequence[Tensor], lr: float, *, keep_graph: bool
) -> list[Tensor]:
    """One step down the gradient whose root mean square over all deltas is `lr`, then projection into the bounds."""
    count = sum(gradient.numel() for gradient in gradients)
    square = torch.stack([gradient.square().sum() for gradient in gradients]).sum() / count
    size = lr / (square + torch.finfo(square.dtype).tiny).sqrt()
    moved = deltas.project([v - size * g for v, g in zip(values, gradients, strict=True)])
    return moved if keep_graph else [value.detach().requires_grad_() for value in moved]
