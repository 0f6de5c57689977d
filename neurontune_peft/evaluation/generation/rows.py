"""The rows of a batch that is being answered: some leave when they are done, others join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from neurontune_peft.tuner.kept import RECORD, can_be_joined, joined_record, record_of, selected_record


@dataclass
class Rows:
    """
    Rows on their way: prompts, padded on the left, and what was answered so far.

    Args:
        places (`list[int]`): Which request each row answers.
        produced (`list[int]`): How many tokens of its answer each row has.
        ids (`torch.Tensor`): Token ids, `(B, L)`.
        mask (`torch.Tensor`): 1 at tokens, 0 at padding, `(B, L)`.
        cache (`Any`): Keys and values of the first `L - 1` tokens.
    """

    places: list[int]
    produced: list[int]
    ids: Tensor
    mask: Tensor
    cache: Any

    @property
    def can_change(self) -> bool:
        """`bool`: Whether rows can leave and join, which needs a cache of plain keys and values of the last tokens."""
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        plain = type(self.cache) is DynamicCache and all(type(layer) in kinds for layer in self.cache.layers)
        if not plain or self.cache.get_seq_length() != self.ids.shape[1] - 1:  # virtual tokens of other adapters
            return False
        record = record_of(self.cache)
        return record is None or can_be_joined(record)

    def answer(self, row: int) -> list[int]:
        """The tokens that a row has answered so far."""
        tokens: list[int] = self.ids[row, self.ids.shape[1] - self.produced[row] :].tolist()
        return tokens

    def keep(self, rows: list[int]) -> None:
        """
        Let the other rows leave, and with them the padding that only they needed.

        Args:
            rows (`list[int]`): The rows that stay.
        """
        index = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        self.places = [self.places[row] for row in rows]
        self.produced = [self.produced[row] for row in rows]
        self.mask = self.mask[index]
        first = int(self.mask.any(dim=0).int().argmax()) if rows else 0
        self.ids, self.mask = self.ids[index, first:], self.mask[:, first:]
        for layer in self.cache.layers:
            if layer.is_initialized:
                own = index.to(layer.keys.device)
                cut = max(0, layer.keys.shape[-2] - (self.ids.shape[1] - 1))
                layer.keys, layer.values = layer.keys[own, :, cut:], layer.values[own, :, cut:]
                self._count(layer)
        if (record := record_of(self.cache)) is not None:
            setattr(self.cache, RECORD, selected_record(record, rows))

    def join(self, other: Rows, *, pad_id: int) -> None:
        """
        Take in other rows, below the own ones; the narrower of both get padding on the left.

        Args:
            other ([`Rows`]): Rows whose prompts have been read.
            pad_id (`int`): Id to pad with.
        """
        width = max(self.ids.shape[1], other.ids.shape[1])
        shifts = [width - part.ids.shape[1] for part in (self, other)]
        parts = list(zip((self, other), shifts, strict=True))
        self.ids = torch.cat([F.pad(part.ids, (shift, 0), value=pad_id) for part, shift in parts])
        self.mask = torch.cat([F.pad(part.mask, (shift, 0)) for part, shift in parts])
        # Layer by layer, so that no more than one is held twice.
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if mine.is_initialized:
                mine.keys, mine.values = _stacked(mine.keys, theirs.keys), _stacked(mine.values, theirs.values)
                self._count(mine)
        record, their_record = record_of(self.cache), record_of(other.cache)
        if record is not None and their_record is not None:
            setattr(self.cache, RECORD, joined_record(record, their_record))
        self.places, self.produced = self.places + other.places, self.produced + other.produced

    def _count(self, layer: Any) -> None:
        """Tell a layer that keeps the last tokens only how many there were."""
        if type(layer) is DynamicSlidingWindowLayer:
            layer.cumulative_length = self.ids.shape[1] - 1


def _stacked(upper: Tensor, lower: Tensor) -> Tensor:
    """Keys or values `(B, heads, T, D)` of two caches below each other, aligned at the last token."""
    width = max(upper.shape[-2], lower.shape[-2])
    return torch.cat([F.pad(part, (0, 0, width - part.shape[-2], 0)) for part in (upper, lower)])
