"""How do requests and answers become tensors?"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from neurontune_peft.prompts.chat import prompt_formatter


@dataclass(frozen=True)
class Batch:
    """
    Rows of token ids: a prompt, then its response, with padding on either side.

    Args:
        input_ids (`Tensor`): Token ids, `(B, T)`, int64.
        attention_mask (`Tensor`): 1 at tokens, 0 at padding, `(B, T)`, int64.
        response_mask (`Tensor`): True at the tokens of the response, `(B, T)`, bool.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """
        Copy the batch to a device.

        Args:
            device (`torch.device` or `str`): The device.

        Returns:
            `Batch`: The batch there.
        """
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def last_prompt(self) -> Tensor:
        """`Tensor`: Position of the last token of each row's prompt, which predicts the answer's first, `(B,)`."""
        positions = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        prompt = self.attention_mask.bool() & ~self.response_mask  # (B, T)
        return (positions * prompt).amax(dim=1)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str] | None = None,
    *,
    chat_template: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    padding_side: Literal["left", "right"] = "right",
    add_eos: bool = True,
) -> Batch:
    """
    Turn requests, with or without answers, into a batch. Prompt and response are tokenised apart, so that a prompt
    has the same tokens whatever follows.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        prompts (`Sequence[str]`): Requests.
        responses (`Sequence[str]`, *optional*): An answer for each request.
        chat_template (`str` or `os.PathLike`, *optional*): Jinja template or a file with one, instead of the
            tokenizer's own.
        max_length (`int`, *optional*): Most tokens of a row. A longer row loses the end of its response, as far as
            that exceeds half of `max_length`, and the middle of its prompt; a warning counts such rows.
        padding_side (`str`, *optional*, defaults to `"right"`): `"left"` or `"right"`.
        add_eos (`bool`, *optional*, defaults to `True`): End each response with the end-of-sequence token.

    Returns:
        `Batch`: One row for each request, in their order.

    Raises:
        ValueError: another number of responses than of prompts, an unknown padding side, or `max_length` below 2.
    """
    if responses is not None and len(responses) != len(prompts):
        raise ValueError(
            f"got {len(responses)} responses for {len(prompts)} prompts; expected one each; give equal lengths"
        )
    if padding_side not in ("left", "right"):
        raise ValueError(f"got padding_side {padding_side!r}; expected 'left' or 'right'; choose one of them")
    heads = prompt_ids(tokenizer, prompts, chat_template=chat_template)
    tails: list[list[int]] = [[] for _ in heads]
    if responses is not None:
        end = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
        tails = [ids + end for ids in token_ids(tokenizer, responses)]
    if max_length is not None:
        heads, tails = shorten(heads, tails, max_length=max_length)
    return pad_rows(heads, tails, pad_id=padding_id(tokenizer), padding_side=padding_side)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    chat_template: str | os.PathLike[str] | None = None,
) -> list[list[int]]:
    """
    Token ids of requests inside the chat template. The template writes the special tokens; none are added.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        prompts (`Sequence[str]`): Requests.
        chat_template (`str` or `os.PathLike`, *optional*): As in `encode`.

    Returns:
        `list[list[int]]`: Token ids of each request.
    """
    formatted = prompt_formatter(tokenizer, chat_template=chat_template)
    return token_ids(tokenizer, [formatted(text) for text in prompts])


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """
    Token ids of texts as they stand: no special tokens are added, those in a text are kept. All texts are tokenised in
    one call, which several threads share.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer, fast or slow.
        texts (`Sequence[str]`): Any texts; an empty list gives an empty list.

    Returns:
        `list[list[int]]`: Token ids of each text.
    """
    if not texts:  # fast tokenizers refuse an empty batch
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    The id to pad with: the tokenizer's own, else the end of sequence, else 0. Padding is masked, so it never counts.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Returns:
        `int`: The id.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def shorten(
    heads: Sequence[list[int]], tails: Sequence[list[int]], *, max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """
    Shorten rows of token ids. A prompt is cut in its middle: the chat template stands at its ends.

    Args:
        heads (`Sequence[list[int]]`): Token ids of the prompts.
        tails (`Sequence[list[int]]`): Token ids of the responses.
        max_length (`int`): Most tokens of a row.

    Returns:
        `tuple[list[list[int]], list[list[int]]]`: Prompts and responses of at most `max_length` tokens together.

    Raises:
        ValueError: `max_length` is below 2.
    """
    if max_length < 2:
        raise ValueError(f"got max_length {max_length}; expected at least 2 tokens; allow longer rows")
    short_heads, short_tails, count = [], [], 0
    for head, tail in zip(heads, tails, strict=True):
        if len(head) + len(tail) > max_length:
            count += 1
            tail = tail[: max(max_length - len(head), max_length // 2)]
            keep = max_length - len(tail)
            if len(head) > keep:
                head = head[: keep // 2] + head[len(head) - (keep - keep // 2) :]
        short_heads.append(head)
        short_tails.append(tail)
    if count:
        warnings.warn(
            f"got {count} of {len(heads)} rows longer than {max_length} tokens; the middle of their prompts was left "
            "out (and the end of responses longer than half of that)",
            UserWarning,
            stacklevel=3,
        )
    return short_heads, short_tails


def pad_rows(
    heads: Sequence[list[int]],
    tails: Sequence[list[int]],
    *,
    pad_id: int,
    padding_side: Literal["left", "right"] = "right",
) -> Batch:
    """
    Put rows of token ids into one batch.

    Args:
        heads (`Sequence[list[int]]`): Token ids of the prompts.
        tails (`Sequence[list[int]]`): Token ids of the responses.
        pad_id (`int`): Id to pad with.
        padding_side (`str`, *optional*, defaults to `"right"`): `"left"` or `"right"`.

    Returns:
        `Batch`: The batch.
    """
    width = max((len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)), default=0)
    input_ids = torch.full((len(heads), width), pad_id)  # (B, T)
    attention_mask = torch.zeros_like(input_ids)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        length = len(head) + len(tail)
        start = width - length if padding_side == "left" else 0
        input_ids[row, start : start + length] = torch.tensor(head + tail, dtype=torch.long)
        attention_mask[row, start : start + length] = 1
        response_mask[row, start + len(head) : start + length] = True
    return Batch(input_ids, attention_mask, response_mask)
