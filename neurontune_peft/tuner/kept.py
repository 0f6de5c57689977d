"""What a cache remembers of the decisions about its rows, and how it is emptied and filled again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
        turn_scores (`torch.Tensor`): The trigger's weighted sum at the tokens of calls so far, shape `(B, S)`.
        turn (`torch.Tensor`): Which of these tokens belong to the turn, bool, shape `(B, S)`.
    """

    strengths: Tensor
    starts: Tensor
    ends: Tensor
    turn_scores: Tensor
    turn: Tensor

    def settled(self) -> Verdict:
        """Without the tokens of the turn, which tell nothing more once all is decided."""
        return replace(self, turn_scores=self.turn_scores[:, :0], turn=self.turn[:, :0])


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


def flat_mask(mask: Any, rows: int, length: int) -> Tensor | None:
    """
    Which tokens are real and no padding, `(B, length)`; `None` where a mask does not tell.

    Args:
        mask (`Any`): An attention mask `(B, T)`, or, as models with static caches get it, which tokens each token may
            attend to, `(B, 1, T, S)`, bool or additive; or several of these by kind of layer.
        rows (`int`): Number of rows B.
        length (`int`): Number of tokens so far.
    """
    if isinstance(mask, Mapping):
        parts = [flat_mask(part, rows, length) for part in mask.values()]
        known = [part for part in parts if part is not None]
        return torch.stack(known).any(dim=0) if known else None
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 2:
        return mask if mask.shape[1] == length else None
    if mask.ndim != 4 or mask.shape[-1] < length or mask.shape[0] not in (1, rows):
        return None
    attends = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return attends[:, 0].any(dim=1)[:, :length].expand(rows, -1)


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


def can_be_joined(record: Record) -> bool:
    """Whether all decisions about the rows of a cache are made, so that rows may leave and others join."""
    return not (record.rechecks or record.awaits or record.adapter_names is not None)


def selected_record(record: Record, rows: list[int]) -> Record:
    """
    The record of some of its rows. The tokens that filled the cache are forgotten: only a new turn would ask for them.

    Args:
        record ([`Record`]): A record that [`can_be_joined`].
        rows (`list[int]`): The rows that stay.
    """
    verdicts = {
        name: Verdict(**{part.name: getattr(verdict.settled(), part.name)[rows] for part in fields(Verdict)})
        for name, verdict in record.verdicts.items()
    }
    return _decided(len(rows), verdicts)


def joined_record(first: Record, second: Record) -> Record:
    """
    The record of a cache with the rows of two others. Positions within rows are those of their own caches: once all
    is decided, nothing is read from them.

    Args:
        first ([`Record`]): A record that [`can_be_joined`].
        second ([`Record`]): Another, about the same adapters.
    """
    verdicts = {}
    for name, mine in first.verdicts.items():
        pair = (mine.settled(), second.verdicts[name].settled())
        verdicts[name] = Verdict(
            **{part.name: torch.cat([getattr(v, part.name) for v in pair]) for part in fields(Verdict)}
        )
    return _decided(first.rows + second.rows, verdicts)


def _decided(rows: int, verdicts: dict[str, Verdict]) -> Record:
    silent = [name for name, verdict in verdicts.items() if not bool((verdict.strengths != 0).any())]
    return Record(rows=rows, adapter_names=None, verdicts=verdicts, resting=frozenset(silent), rechecks=False)
