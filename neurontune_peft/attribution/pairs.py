"""Attacked prompts beside their plain forms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neurontune_peft.prompts import Batch


@dataclass(frozen=True)
class PairedBatch(Batch):
    """
    Attacked prompts with, row for row, their plain forms; as a [`Batch`] it is the attacked one.

    Args:
        plain ([`Batch`]): The plain forms, `(B, T')`, with the same responses. Build it with [`pair`].
    """

    plain: Batch

    def to(self, device: torch.device | str) -> PairedBatch:
        """Copy both forms to a device."""
        return pair(super().to(device), self.plain.to(device))


def pair(attacked: Batch, plain: Batch) -> PairedBatch:
    """
    Put attacked prompts and their plain forms side by side.

    Args:
        attacked ([`Batch`]): B attacked prompts, with or without responses.
        plain ([`Batch`]): The plain form of each, with the same responses.

    Returns:
        [`PairedBatch`]: Both.

    Raises:
        ValueError: When they differ in their number of rows or in a response.
    """
    if len(attacked) != len(plain):
        raise ValueError(
            f"got {len(attacked)} attacked and {len(plain)} plain prompts; expected one plain form for each; encode "
            "the plain form of every row"
        )
    for row in range(len(attacked)):
        if not torch.equal(_response(attacked, row), _response(plain, row)):
            raise ValueError(
                f"got different responses to the attacked and the plain prompt of row {row}; expected the same tokens "
                "after both, as scores align on them; encode both with the same responses and a larger max_length"
            )
    return PairedBatch(attacked.input_ids, attacked.attention_mask, attacked.response_mask, plain)


def _response(batch: Batch, row: int) -> Tensor:
    return batch.input_ids[row][batch.response_mask[row]]
