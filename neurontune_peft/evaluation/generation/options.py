"""How are answers made? Greedy ones, and as many drawn ones beside them as are asked for."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Generation:
    """
    How a model answers when it is measured.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to `64`): Requests answered at once. Answers do not depend on it.
        temperature (`float`, *optional*, defaults to `0.0`): Above 0, with `n_samples`: harmful requests are answered
            again with tokens drawn from the softmax of `logits / temperature`, all tokens allowed.
        n_samples (`int`, *optional*, defaults to `0`): Drawn answers per harmful request, beside the greedy one.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws. Each request has draws of its own, so that they
            depend neither on the batch nor on the other requests.
        cache (`str` or `os.PathLike`, *optional*): Directory that keeps answers. A repeated run reads them, and an
            interrupted one goes on where it stopped.

    Raises:
        ValueError: a number is out of range, or only one of `temperature` and `n_samples` is given.
    """

    max_new_tokens: int = 32
    batch_size: int = 64
    temperature: float = 0.0
    n_samples: int = 0
    seed: int = 0
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("n_samples", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"got {name} {value!r}; expected at least {least}; give such a whole number")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise ValueError(f"got temperature {self.temperature!r}; expected 0 or more; give for example 0.7")
        if (self.temperature > 0) != (self.n_samples > 0):
            raise ValueError(
                f"got temperature {self.temperature} with {self.n_samples} samples; expected both or neither; give "
                "for example temperature 0.7 and 5 samples"
            )

    def as_dict(self) -> dict[str, Any]:
        """
        What of this the figures depend on.

        Returns:
            `dict[str, Any]`: The options by name; those of drawn answers where there are any.
        """
        drawn = {name: getattr(self, name) for name in ("temperature", "n_samples", "seed")}
        return {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            **(drawn if self.n_samples else {}),
        }
