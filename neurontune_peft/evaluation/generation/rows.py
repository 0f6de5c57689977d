"""The rows of a batch that is being answered: some leave when they are done, others join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

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
        """`bool`: Whether rows can leave and join, which needs a cache of plain keys and values, one per token."""
        plain = type(self.cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in self.cache.layers)
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
                layer.keys, layer.values = layer.keys[own, :, first:], layer.values[own, :, first:]
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
        ids = torch.cat([F.pad(part.ids, (shift, 0), value=pad_id) for part, shift in parts])
        mask = torch.cat([F.pad(part.mask, (shift, 0)) for part, shift in parts])
        for mine, theirs in zip(
            self.cache.layers, other.cache.layers, strict=True
        ):  # one layer is held twice at a time
            if mine.is_initialized:
                pair = list(zip((mine, theirs), shifts, strict=True))
                mine.keys, mine.values = (
                    torch.cat([F.pad(getattr(layer, what), (0, 0, shift, 0)) for layer, shift in pair])
                    for what in ("keys", "values")
                )
        record, their_record = record_of(self.cache), record_of(other.cache)
        if record is not None and their_record is not None:
            setattr(self.cache, RECORD, joined_record(record, their_record))
        self.places, self.produced = self.places + other.places, self.produced + other.produced
        self.ids, self.mask = ids, mask
