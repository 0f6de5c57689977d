"""Over which tokens does a trigger take means? Short windows of a turn, so that long texts dilute less."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def window_means(values: Tensor, turn: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """
    Means over windows of each row's turn, which begin every half a window from the turn's first token on.

    The last window may be shorter, by less than half; a turn that is no longer than a window is one window. Sums run
    over the same tokens in the same order whatever stands beside a row.

    Args:
        values (`torch.Tensor`): One number per token, shape `(B, T)`, or several, `(B, T, k)`.
        turn (`torch.Tensor`): True at the tokens of each row's turn, shape `(B, T)`.
        window (`int`, *optional*): Number of tokens, even; without it, the whole turn is one window.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Means, shape `(B, W)` or `(B, W, k)`, zeros where there is no such window,
        and which of them there are, bool, shape `(B, W)`. Each row has at least one, of zeros where its turn is empty.
    """
    lengths = turn.sum(dim=1)  # (B,)
    order = (~turn).int().argsort(dim=1, stable=True)  # (B, T): the turn's tokens first
    inside = torch.arange(turn.shape[1], device=turn.device) < lengths.unsqueeze(1)  # (B, T)
    first = values.gather(1, _wide(order, values).expand_as(values)).where(_wide(inside, values), 0.0)
    if window is None:
        means = first.sum(dim=1, keepdim=True) / _wide(lengths.clamp(min=1).unsqueeze(1), values)
        return means, torch.ones_like(lengths, dtype=torch.bool).unsqueeze(1)
    half = window // 2
    chunks = max(2, -(-turn.shape[1] // half))
    padding = (0, 0) * (values.ndim - 2) + (0, chunks * half - turn.shape[1])
    sums = F.pad(first, padding).unflatten(1, (chunks, half)).sum(dim=2)  # (B, C) or (B, C, k)
    starts = torch.arange(chunks, device=turn.device) * half
    counts = (lengths.unsqueeze(1) - starts).clamp(0, half)  # (B, C)
    tokens = counts[:, :-1] + counts[:, 1:]  # (B, C - 1)
    exists = (counts[:, 1:] > 0) | (starts[:-1] == 0)
    means = (sums[:, :-1] + sums[:, 1:]) / _wide(tokens.clamp(min=1), values)
    return means.where(_wide(exists, values), 0.0), exists


def _wide(flags: Tensor, values: Tensor) -> Tensor:
    """Shape `(B, T)`, with a further dimension where values have one."""
    return flags if values.ndim == 2 else flags.unsqueeze(-1)


def highest_window(scores: Tensor, turn: Tensor, window: int | None) -> Tensor:
    """
    The highest mean over a window of each row's turn, shape `(B,)`; arguments are those of [`window_means`].

    Args:
        scores (`torch.Tensor`): One number per token, shape `(B, T)`.
        turn (`torch.Tensor`): Shape `(B, T)`.
        window (`int`, *optional*): Number of tokens.
    """
    means, exists = window_means(scores, turn, window)
    return means.masked_fill(~exists, -torch.inf).amax(dim=1)
