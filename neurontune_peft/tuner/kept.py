"""What a cache remembers of the decisions about its rows, and how it is emptied and filled again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

# Name of the attribute by which a cache carries its record: it is copied and dropped with the cache.
RECORD = "_neurontune_record"
# First position at which the strength of a row acts that never triggered.
NEVER = 2**31


@dataclass
class Verdict:
    """
    What an adapter's trigger has decided for each row.

    Args:
        strengths (`torch.Tensor`): Shape `(B,)`.
        starts (`torch.Tensor`): First position at which the strength acts, shape `(B,)`; 0 for the whole row.
        ends (`torch.Tensor`): Where the prompt ends, shape `(B,)`.
        turn_sum (`torch.Tensor`): The trigger's weighted sum over the tokens of the turn so far, shape `(B,)`.
        turn_count (`torch.Tensor`): Number of these tokens, shape `(B,)`.
    """

    strengths: Tensor
    starts: Tensor
    ends: Tensor
    turn_sum: Tensor
    turn_count: Tensor


@dataclass
class Record:
    """
    The state of a cache.

    Args:
        rows (`int`): Number of rows B.
        adapter_names (`tuple[str, ...]`, *optional*): Adapter of each row.
        verdicts (`dict[str, Verdict]`): Adapter to what was decided.
        resting (`frozenset[str]`): Adapters whose strength is 0 in every row.
        rechecks (`bool`): Whether decoding steps may have to decide again.
        awaits (`bool`, *optional*, defaults to `False`): No prompt has ended in any row yet.
        tokens (`list[tuple[int, torch.Tensor]]`, *optional*):
            First position and ids `(B, T)` of the calls that filled the cache.
    """

    rows: int
    adapter_names: tuple[str, ...] | None
    verdicts: dict[str, Verdict]
    resting: frozenset[str]
    rechecks: bool
    awaits: bool = False
    tokens: list[tuple[int, Tensor]] = field(default_factory=list)

    def ids(self, length: int) -> Tensor | None:
        """The first `length` token ids of each row, shape `(B, length)`; `None` when some were not seen."""
        known: list[Tensor] = []
        end = length
        for start, ids in reversed(self.tokens):  # later calls overwrite what was cropped in between
            if start < end:
                if start + ids.shape[1] < end:
                    return None
                known.append(ids[:, : end - start])
                end = start
        if end > 0 or any(len(ids) != self.rows for ids in known):
            return None
        return torch.cat(known[::-1], dim=1)


def record_of(cache: Any) -> Record | None:
    """The record that a cache carries."""
    return getattr(cache, RECORD, None)


def cache_length(cache: Any) -> int:
    """Number of tokens in a cache; 0 without one."""
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0


def empty_cache(cache: Cache) -> None:
    """Make a cache as if it had never been filled."""
    cache.reset()
    if left := cache_length(cache):  # some versions of transformers blank the states but keep their number
        cache.crop(-left)


def forget_last(cache: Any, count: int) -> None:
    """
    Take the last tokens out of a cache again.

    Raises:
        ValueError: When the cache cannot do that.
    """
    try:
        cache.crop(-count)
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"got a {type(cache).__name__} whose last {count} tokens cannot be taken out again; expected a cache that "
            "can be cropped, as the decision about this request changes them; pass the whole conversation without "
            "past_key_values, or use a DynamicCache"
        ) from error


def named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    names = list(inspect.signature(model.forward).parameters) if args else []
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def flat_mask(mask: Any, length: int) -> Tensor | None:
    """The attention mask `(B, T)`, where it has that form; other forms say nothing about padding."""
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == length else None


def prefix_inputs(model: nn.Module, inputs: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """
    Arguments of a call that fills a cache with the tokens before those of another call.

    Args:
        model (`nn.Module`): The base model.
        inputs (`Mapping[str, Any]`): The other call's arguments by name.
        ids (`torch.Tensor`): The tokens before, shape `(B, S)`.
    """
    accepted = inspect.signature(model.forward).parameters
    mask = inputs.get("attention_mask")
    mask = mask[:, : ids.shape[1]] if isinstance(mask, Tensor) and mask.ndim == 2 else None
    given: dict[str, Any] = {"input_ids": ids, "past_key_values": inputs["past_key_values"], "use_cache": True}
    if mask is not None:
        given["attention_mask"] = mask
    if inputs.get("position_ids") is not None:
        real = torch.ones_like(ids) if mask is None else mask
        given["position_ids"] = (real.long().cumsum(dim=1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        given["logits_to_keep"] = 1
    return given
