"""Drawn answers whose draws belong to the request, not to its place in a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Draws:
    """
    Which draws a set of answers is made with.

    Args:
        temperature (`float`): Above 0.
        seed (`int`): Seed of all draws.
        sample (`int`): Number of the answer among those to one request, from 0.
    """

    temperature: float
    seed: int
    sample: int

    def uniforms(self, ids: Sequence[int], count: int) -> list[float]:
        """
        The draws of one request. They follow from its token ids alone.

        Args:
            ids (`Sequence[int]`): Token ids of the prompt.
            count (`int`): How many.

        Returns:
            `list[float]`: Numbers from 0 to below 1.
        """
        generator = random.Random(f"{self.seed} {self.sample} {list(ids)}")
        return [generator.random() for _ in range(count)]


class Drawing(LogitsProcessor):
    """
    Leaves one token per row, drawn by inverting the distribution function: one number per row and token, where drawing
    with a generator of the batch would make a row's answer depend on the others.

    Args:
        temperature (`float`): Above 0.
        uniforms (`torch.Tensor`): The rows' draws, `(B, N)`, float64, from 0 to below 1.
        steps (`Sequence[int]`): Which of its draws each row comes to first.
        width (`int`): Tokens per row before the first draw.
    """

    def __init__(self, temperature: float, uniforms: Tensor, steps: Sequence[int], width: int) -> None:
        self.temperature, self.uniforms, self.width = temperature, uniforms, width
        self.steps = torch.tensor(steps, device=uniforms.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """
        Args:
            input_ids (`torch.Tensor`): Tokens so far, `(B, L)`.
            scores (`torch.Tensor`): Logits of the next token, `(B, V)`.

        Returns:
            `torch.Tensor`: 0 at the drawn token, minus infinity elsewhere, `(B, V)`.
        """
        place = self.steps + (input_ids.shape[1] - self.width)
        # Steps past a row's last are computed only to be thrown away.
        place = place.clamp(max=self.uniforms.shape[1] - 1)
        wanted = self.uniforms.gather(1, place.unsqueeze(1))  # (B, 1)
        cumulative = (scores.double() / self.temperature).softmax(dim=-1).cumsum(dim=-1)  # (B, V)
        # The sum may fall short of 1 by rounding; a draw beyond it is the last token that has any probability.
        drawn = torch.searchsorted(cumulative, wanted * cumulative[:, -1:], right=True)
        drawn = drawn.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
