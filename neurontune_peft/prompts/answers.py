"""What does a model answer? Greedy answers in batches, and reference answers by the base model itself."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.checks import write_atomically
from neurontune_peft.prompts.batches import pad_rows, padding_id, prompt_ids, shorten
from neurontune_peft.prompts.chat import prompt_formatter, warn_once
from neurontune_peft.prompts.prompt_set import PromptSet

CACHE_VERSION = 1


def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: str | os.PathLike[str] | None = None,
    desc: str | None = None,
) -> list[str]:
    """
    Greedy answers. Batches are formed by length and padded on the left; the model's training mode is restored.

    Args:
        model (`nn.Module`): A causal language model with `generate`, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, which is not changed.
        prompts (`Sequence[str]`): Requests; an empty list gives an empty list.
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to `64`): Requests answered at once.
        chat_template (`str` or `os.PathLike`, *optional*): Jinja template or a file with one, instead of the
            tokenizer's own.
        desc (`str`, *optional*): Title of the progress bar.

    Returns:
        `list[str]`: The answer to each request, without special tokens.

    Raises:
        ValueError: `max_new_tokens` or `batch_size` is below 1.
    """
    answers = [""] * len(prompts)
    batches = _answer_in_batches(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chat_template=chat_template,
        desc=desc or "answers",
    )
    for batch in batches:
        for i, answer in batch.items():
            answers[i] = answer
    return answers


def complete_responses(
    prompt_set: PromptSet,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    kinds: Sequence[str] = ("benign", "borderline"),
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: str | os.PathLike[str] | None = None,
) -> PromptSet:
    """
    Give requests without a reference answer the base model's own greedy answer.

    Answers that fill all of `max_new_tokens` end in the middle of a sentence.

    Args:
        prompt_set (`PromptSet`): The set; responses that are there are kept.
        model (`nn.Module`): The base model, or a `PeftModel`, which answers with its adapters disabled.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        cache (`str` or `os.PathLike`, *optional*): JSON file that keeps the answers. It is written after each batch,
            so that an interrupted run goes on where it stopped.
        fingerprint (`str`, *optional*): What the cache knows the model by; required with `cache`.
        kinds (`Sequence[str]`, *optional*, defaults to `("benign", "borderline")`): Kinds of requests to complete.
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to `64`): Requests answered at once.
        chat_template (`str` or `os.PathLike`, *optional*): As in `generate_answers`.

    Returns:
        `PromptSet`: The set with answers; the given one when nothing was missing.

    Raises:
        ValueError: a cache without a fingerprint, or a cache file that is not one.
    """
    if cache is not None and not fingerprint:
        raise ValueError(
            "got a cache without a fingerprint; expected the model's fingerprint, so that answers of different models "
            "are kept apart; pass fingerprint=..."
        )
    missing = [p.prompt for p in prompt_set.prompts if p.kind in kinds and p.response is None]
    if not missing:
        return prompt_set
    formatted = prompt_formatter(tokenizer, chat_template=chat_template)
    keys = {text: formatted(text) for text in missing}  # the answer depends on the template, too
    answers = _read_cache(cache, fingerprint, max_new_tokens)
    todo = [text for text in keys if keys[text] not in answers]
    batches = _answer_in_batches(
        model,
        tokenizer,
        todo,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chat_template=chat_template,
        desc="reference answers",
    )
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        for batch in batches:
            answers |= {keys[todo[i]]: answer for i, answer in batch.items()}
            _write_cache(cache, fingerprint, max_new_tokens, answers)
    filled = (
        replace(p, response=answers[keys[p.prompt]]) if p.kind in kinds and p.response is None else p
        for p in prompt_set.prompts
    )
    return replace(prompt_set, prompts=tuple(filled))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """
    Switch dropout off for a while; every module gets its own mode back, as a model may be trained in parts.

    Args:
        model (`nn.Module`): The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def context_length(model: nn.Module) -> int | None:
    """
    Most tokens that a model takes, as its configuration says.

    Args:
        model (`nn.Module`): A model of transformers, or a `PeftModel` of one.

    Returns:
        `int`, *optional*: The number; `None` where positions are not limited.
    """
    config: Any = model.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None)  # absent in models without positions
    return context if isinstance(context, int) and context > 0 else None


def _answer_in_batches(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    chat_template: str | os.PathLike[str] | None,
    desc: str,
) -> Iterator[dict[int, str]]:
    """Yield, batch by batch, the answers by index into `prompts`."""
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"got {name} {value}; expected at least 1; give a positive number")
    if not prompts:
        return
    if next(model.parameters()).is_meta:
        raise ValueError("got a model on the meta device; expected real weights; load the model first")
    ids = fitting_ids(model, tokenizer, prompts, max_new_tokens, chat_template=chat_template)
    options = generation_options(model, tokenizer)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), logging.tqdm(total=len(ids), desc=desc, unit="prompt") as progress:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            rows = [ids[i] for i in part]
            batch = pad_rows(rows, [[] for _ in rows], pad_id=options["pad_token_id"], padding_side="left").to(device)
            generated = model.generate(  # type: ignore[operator]
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **options,
            )  # (B, T + new)
            new = generated[:, batch.input_ids.shape[1] :]
            yield {i: str(tokenizer.decode(row, skip_special_tokens=True)) for i, row in zip(part, new, strict=True)}
            progress.update(len(part))


def fitting_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    chat_template: str | os.PathLike[str] | None = None,
) -> list[list[int]]:
    """
    Token ids of requests inside the chat template, that leave room for an answer in the model's context. Longer ones
    lose their middle, and a warning counts them.

    Args:
        model (`nn.Module`): The model that shall answer.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]`): Requests.
        max_new_tokens (`int`): Most tokens of an answer.
        chat_template (`str` or `os.PathLike`, *optional*): As in `generate_answers`.

    Returns:
        `list[list[int]]`: Token ids of each request.

    Raises:
        ValueError: the answer alone fills the context.
    """
    ids = prompt_ids(tokenizer, prompts, chat_template=chat_template)
    context = context_length(model)
    if context is None:
        return ids
    if context - max_new_tokens < 2:
        raise ValueError(
            f"got max_new_tokens {max_new_tokens} and a model whose context is {context} tokens; expected room for a "
            "prompt beside the answer; lower max_new_tokens"
        )
    return shorten(ids, [[] for _ in ids], max_length=context - max_new_tokens)[0]


def generation_options(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """
    What a tokenizer knows and `generate` needs: the id to pad with, and the end token where the model names none.

    Args:
        model (`nn.Module`): The model that shall answer.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.

    Returns:
        `dict[str, int]`: Options of `generate`.
    """
    if tokenizer.pad_token_id is None:
        warn_once(
            tokenizer,
            f"got the tokenizer {tokenizer.name_or_path!r} without a padding token; its end-of-sequence token is used",
        )
    options = {"pad_token_id": padding_id(tokenizer)}
    generation_config: Any = model.generation_config
    if generation_config.eos_token_id is None and tokenizer.eos_token_id is not None:
        options["eos_token_id"] = int(tokenizer.eos_token_id)
    return options


def _read_cache(cache: str | os.PathLike[str] | None, fingerprint: str | None, max_new_tokens: int) -> dict[str, str]:
    if cache is None or not Path(cache).exists():
        return {}
    return _load_cache(Path(cache)).get(str(fingerprint), {}).get(str(max_new_tokens), {})


def _write_cache(
    cache: str | os.PathLike[str] | None, fingerprint: str | None, max_new_tokens: int, answers: dict[str, str]
) -> None:
    if cache is None:
        return
    stored = _load_cache(Path(cache)) if Path(cache).exists() else {}
    stored.setdefault(str(fingerprint), {})[str(max_new_tokens)] = answers
    data = {"format_version": CACHE_VERSION, "answers": stored}
    write_atomically(cache, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _load_cache(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Answers by fingerprint, by `max_new_tokens`, by formatted prompt."""
    advice = "delete the file or name another one"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"got {path} with {error}; expected a JSON cache of answers; {advice}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != CACHE_VERSION:
        raise ValueError(f"got {path} of format version {version}; expected version {CACHE_VERSION}; {advice}")
    answers: dict[str, dict[str, dict[str, str]]] = data["answers"]
    return answers
