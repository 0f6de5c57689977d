"""How do other PEFT methods learn here? From the same prompts and losses, step by step, without meta-learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.answers import evaluating
from neurontune_peft.training import Log, MetaConfig
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.loop import learn
from neurontune_peft.training.make import make_families
from neurontune_peft.training.recompute import recomputing
from neurontune_peft.training.refusals import refusal_texts
from neurontune_peft.training.state import LoopState


@dataclass(frozen=True)
class Weights(Deltas):
    """
    The trained parameters of any PEFT method, in the place that the deltas have in our training.

    Args:
        owners (`tuple[tuple[nn.Module, str], ...]`): Module and name of each parameter.
    """

    owners: tuple[tuple[nn.Module, str], ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """All parameters of a model that require gradients, without bounds."""
        owners = tuple(
            (module, name)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        )
        free = [torch.full_like(owner._parameters[name].detach(), torch.inf) for owner, name in owners]  # type: ignore[union-attr]
        return cls((), "", low=tuple(-part for part in free), high=tuple(free), owners=owners)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [owner._parameters[name] for owner, name in self.owners]  # type: ignore[misc]

    @contextmanager
    def replaced_by(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Let the model compute with other tensors in place of the parameters."""
        kept = self.parameters
        try:
            for (owner, name), value in zip(self.owners, values, strict=True):
                owner._parameters[name] = value  # type: ignore[assignment]
            yield
        finally:
            for (owner, name), parameter in zip(self.owners, kept, strict=True):
                owner._parameters[name] = parameter


def joint_train(
    model: PeftModel, tokenizer: Any, prompts: PromptSet, config: MetaConfig, *, chat_template: str | None = None
) -> Log:
    """
    Train the active adapter of any PEFT method as order `"none"` trains deltas: same prompts, losses, budgets, steps.

    Args:
        model (`PeftModel`): A model whose trained parameters require gradients.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompt set; its test split is not touched.
        config ([`MetaConfig`]): The options; those that only make sense for deltas are ignored.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Log`]: The losses of each step, and the validations when the options ask for some.

    Raises:
        FloatingPointError: When a loss is NaN or infinite.
    """
    config = joint_options(config)
    weights = Weights.of(model)
    state = LoopState(weights, torch.optim.Adam(weights.parameters, lr=config.lr))
    with evaluating(model), recomputing(model):
        refusals = refusal_texts(model, tokenizer, prompts, source=config.refusal_targets, chat_template=chat_template)
        families, validate = make_families(
            model, tokenizer, weights, prompts, config, refusals, chat_template=chat_template
        )
        measure = None if validate is None else validate.costs
        with logging.tqdm(total=config.steps, desc="train control", unit="step") as bar:
            stopped = learn(state, families.draw, config, validate=validate, measure=measure, bar=bar)
        state.finish()
    return Log(
        state.history,
        config=config.to_dict(),
        prompt_set=prompts.fingerprint,
        validations=state.validations,
        kept_step=state.kept_step,
        stopped=stopped,
    )


def joint_options(config: MetaConfig) -> MetaConfig:
    """The options without meta-learning and without what only deltas have: rankings, ties, zeros."""
    return replace(config, order="none", nested=False, tie="none", zero_share=0.0, finetune_steps=0, l1=0.0)
