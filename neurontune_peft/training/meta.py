"""How large are the scales? Learning them over the attack families of a prompt set."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import logging

from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.answers import evaluating
from neurontune_peft.training.budgets import budgets_met
from neurontune_peft.training.checkpoint import checkpoint_of
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.flagged import trigger_aside
from neurontune_peft.training.log import Log
from neurontune_peft.training.loop import learn
from neurontune_peft.training.make import make_families
from neurontune_peft.training.parallel import check_divisible, process
from neurontune_peft.training.recompute import check_recomputable, recomputing
from neurontune_peft.training.refusals import refusal_texts
from neurontune_peft.training.state import LoopState

logger = logging.get_logger(__name__)


def meta_train(
    model: PeftModel,
    tokenizer: Any,
    prompts: PromptSet,
    config: MetaConfig | None = None,
    *,
    chat_template: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    track: Callable[..., None] | None = None,
) -> Log:
    """
    Learn the scales of the active adapter, in place.

    Each step takes one attack family of the train split. Its *support set* moves the deltas `inner_steps` times; the
    gradient of refusing its *query set* there, and of refusing plain harmful prompts and answering benign, borderline
    and wrapped benign prompts as before at the deltas themselves, moves the deltas for good (Adam, then projection
    into the bounds). Only the deltas change; the model computes in evaluation mode and is put back afterwards. A
    trigger is set aside meanwhile: scales are learnt on all requests that they meet here.

    Ctrl-C ends the training, not the program: the best deltas so far stay, and `Log.stopped` says so. The same holds
    for a run that diverges.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompt set; its test split is not touched.
        config ([`MetaConfig`], *optional*): The options.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
        checkpoint (`str` or `os.PathLike`, *optional*):
            File that is written every `checkpoint_every` steps. Where it exists, the run goes on from it, and ends
            with the same deltas, bit for bit, as if it had never stopped.
        track (`Callable`, *optional*):
            Called after each step as `track({name: number}, step=step)`; [`~accelerate.Accelerator.log`] fits.

    Returns:
        [`Log`]: The losses of each step.

    Raises:
        ValueError: When the adapter cannot be trained as it is, the prompt set lacks what training needs, or the
            checkpoint belongs to another run.
        FloatingPointError: When a loss is NaN or infinite; the deltas are those of the step before.

    Example:

        ```py
        >>> log = meta_train(model, tokenizer, PromptSet.load(), MetaConfig(steps=100), checkpoint="run.safetensors")
        >>> model.save_pretrained("adapter")
        ```
    """
    config = MetaConfig() if config is None else config
    deltas = find_deltas(model, config.limits)
    check_recomputable(model, config.order)
    check_divisible(config.accumulation)
    file = checkpoint and checkpoint_of(checkpoint, model, prompts, config, chat_template=chat_template)
    found = file.load() if file else None
    state = LoopState(deltas, torch.optim.Adam(deltas.parameters, lr=config.lr))
    options = {"chat_template": chat_template}
    with trigger_aside(model), evaluating(model), recomputing(model):  # dropout would drown the small effect of scales
        refusals = (
            found.refusals
            if found
            else refusal_texts(model, tokenizer, prompts, source=config.refusal_targets, **options)
        )
        families, validate = make_families(model, tokenizer, deltas, prompts, config, refusals, **options)
        if found:
            state.restore(found.tensors, found.numbers)
        save = partial(file.save, state, refusals) if file and process()[0] == 0 else None
        with logging.tqdm(total=config.steps, initial=state.step, desc="train scales", unit="step") as bar:
            stopped = learn(
                state,
                families.draw,
                families.config,
                validate=validate,
                measure=validate.costs if validate else None,
                save=save,
                track=track,
                bar=bar,
            )
        state.finish()
    if stopped:
        _say(stopped, checkpoint)
    return _log(state, families.config, prompts, stopped)


def _log(state: LoopState, config: MetaConfig, prompts: PromptSet, stopped: str) -> Log:
    kept = next((entry for entry in state.validations if entry.step == state.kept_step), None)
    return Log(
        state.history,
        config=config.to_dict(),
        prompt_set=prompts.fingerprint,
        validations=state.validations,
        kept_step=state.kept_step,
        budgets=budgets_met(config, kept.costs) if kept else (),
        stopped=stopped,
    )


def _say(stopped: str, checkpoint: str | os.PathLike[str] | None) -> None:
    if stopped.startswith("interrupted"):
        stopped += "; the best deltas so far are kept; "
        stopped += (
            f"run again with checkpoint='{checkpoint}' to go on" if checkpoint else "next time pass checkpoint=..."
        )
    logger.warning("Training %s", stopped)
