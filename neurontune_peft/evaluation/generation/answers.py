"""One call for the answers to many requests: what is known is read, the rest is dealt to the processes and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.evaluation.generation.cache import Kept, digest
from neurontune_peft.evaluation.generation.engine import Engine
from neurontune_peft.evaluation.generation.identity import identity
from neurontune_peft.evaluation.generation.options import Generation
from neurontune_peft.evaluation.generation.sampling import Draws
from neurontune_peft.prompts.answers import fitting_ids, generation_options
from neurontune_peft.training.parallel import gathered_texts, process

logger = logging.get_logger(__name__)


def kept_for(model: nn.Module, directory: str | os.PathLike[str] | None) -> Kept:
    """
    What is kept about a model as it is now.

    Args:
        model (`nn.Module`): The model, with its adapters set as they shall answer.
        directory (`str` or `os.PathLike`, *optional*): Where values are kept.

    Returns:
        [`Kept`]: Empty, and keeping nothing, without a directory or when there is no telling what answers depend on.
    """
    setting = None if directory is None else identity(model)
    if directory is not None and setting is None:
        logger.warning(
            "Answers are not kept: hooks or settings of this call change the model in ways that its weights do not "
            "show, or its weights cannot be read"
        )
    return Kept(None if setting is None else directory, setting or {})


def answer_all(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    generation: Generation,
    *,
    sample: int | None = None,
    kept: Kept | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    desc: str = "answers",
) -> list[str]:
    """
    [`answer_rows`], of requests that are put into the chat template and tokenised first.

    Args:
        model (`nn.Module`): A causal language model with `generate`, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]`): Requests.
        generation ([`Generation`]): How.
        sample (`int`, *optional*): As in `answer_rows`.
        kept ([`Kept`], *optional*): As in `answer_rows`.
        chat_template (`str` or `os.PathLike`, *optional*): Jinja template or a file with one, instead of the
            tokenizer's own.
        desc (`str`, *optional*, defaults to `"answers"`): Title of the progress bar.

    Returns:
        `list[str]`: The answer to each request, without special tokens.

    Raises:
        ValueError: the model has no weights yet, or no room for an answer.
    """
    ids = fitting_ids(model, tokenizer, prompts, generation.max_new_tokens, chat_template=chat_template)
    return answer_rows(model, tokenizer, ids, generation, sample=sample, kept=kept, desc=desc)


def answer_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    generation: Generation,
    *,
    sample: int | None = None,
    kept: Kept | None = None,
    desc: str = "answers",
) -> list[str]:
    """
    Answer requests. The answers depend neither on the batch size nor on padding, order or number of processes.

    In a group of processes, as accelerate and torchrun start it, each answers its share, and all return all answers.

    Args:
        model (`nn.Module`): A causal language model with `generate`, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        rows (`Sequence[list[int]]`): Token ids of the requests, which leave room for an answer, as `fitting_ids`
            returns them. Equal ones are answered once.
        generation ([`Generation`]): How.
        sample (`int`, *optional*): Number of the drawn answer, from 0; greedy answers without.
        kept ([`Kept`], *optional*): What is kept about this model; by default what `generation.cache` holds.
        desc (`str`, *optional*, defaults to `"answers"`): Title of the progress bar.

    Returns:
        `list[str]`: The answer to each request, without special tokens.

    Raises:
        ValueError: the model has no weights yet.
    """
    if not rows:
        return []
    if next(model.parameters()).is_meta:
        raise ValueError("got a model on the meta device; expected real weights; load the model first")
    kept = kept_for(model, generation.cache) if kept is None else kept
    options = generation_options(model, tokenizer)
    draws = None if sample is None else Draws(generation.temperature, generation.seed, sample)
    how = {
        "max_new_tokens": generation.max_new_tokens,
        "options": options,
        "draws": draws and [draws.temperature, draws.seed, draws.sample],
    }
    keys = [digest([how, row]) for row in rows]
    engine = Engine(model, options, generation.max_new_tokens, generation.batch_size, draws=draws)
    found = _answered(engine, dict(zip(keys, rows, strict=True)), kept, desc)
    return [str(text) for text in tokenizer.batch_decode([found[key] for key in keys], skip_special_tokens=True)]


def _answered(engine: Engine, requests: dict[str, list[int]], kept: Kept, desc: str) -> dict[str, list[int]]:
    """Token ids of the answer to each request, by key."""
    known = {key: kept.values[key] for key in requests if key in kept.values}
    rank, count = process()
    device = next(engine.model.parameters()).device
    todo = [key for key in requests if key not in known]
    if count > 1:  # the first process decides; nobody writes before all have read
        todo = json.loads(gathered_texts(json.dumps(todo), count, device)[0])
        known = {key: answer for key, answer in known.items() if key not in set(todo)}
    todo.sort(key=lambda key: len(requests[key]))
    mine = todo[rank::count]
    made: dict[str, list[int]] = {}
    with logging.tqdm(total=len(requests), initial=len(known), desc=desc, unit="prompt") as progress:
        for answers in engine.answers([requests[key] for key in mine]):
            new = {mine[place]: tokens for place, tokens in answers.items()}
            kept.add(new)
            made |= new
            progress.update(len(new) * count)
    return known | made if count == 1 else _exchanged(known if rank == 0 else {}, made, count, device)


def _exchanged(known: dict[str, Any], made: dict[str, Any], count: int, device: torch.device) -> dict[str, Any]:
    """What all processes have."""
    texts = gathered_texts(json.dumps(known | made), count, device)
    return {key: answer for text in texts for key, answer in json.loads(text).items()}
