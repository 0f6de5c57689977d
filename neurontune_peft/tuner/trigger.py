"""Reading a trigger: where a request ends, what the adapter's neurons say there, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neurontune_peft.tuner.scaling import Scaling

NOWHERE = -1  # position of a request's end in a row that holds none


@dataclass(frozen=True)
class TriggerDecision:
    """
    What was decided for one row.

    Args:
        row (`int`): Place in the batch.
        adapter_name (`str`): The adapter whose trigger was read.
        position (`int`, *optional*): Place of the token at which it was read; `None` when the row holds no prompt end.
        score (`float`, *optional*): The trigger's score; `None` without position.
        strength (`float`): Strength of the adapter from here on.
    """

    row: int
    adapter_name: str
    position: int | None
    score: float | None
    strength: float


@dataclass
class Reading:
    """
    Collects unscaled activations of an adapter's neurons at some positions of each row, while layers compute.

    Args:
        name (`str`): The adapter to read.
        positions (`torch.Tensor`): Where, shape `(B, P)`, int64; at `NOWHERE` what is read has no meaning.
        length (`int`): Number of tokens T per row.
        keep_features (`bool`, *optional*, defaults to `False`): Keep the activations, not only their weighted sum.
        score (`torch.Tensor`, *optional*): Weighted sum so far, shape `(B, P)`.
        features (`dict`, *optional*): `id` of the layer to activations of shape `(B * P, k)`.
    """

    name: str
    positions: Tensor
    length: int
    keep_features: bool = False
    score: Tensor | None = None
    features: dict[int, Tensor] = field(default_factory=dict)

    @property
    def flat_positions(self) -> Tensor:
        """Positions in a batch whose tokens stand in one row, shape `(B * P,)`."""
        starts = torch.arange(len(self.positions), device=self.positions.device).unsqueeze(1) * self.length
        return (starts + self.positions.clamp(min=0)).flatten()

    def read(self, layer: Scaling, hidden: Tensor) -> None:
        """
        Read the neurons of one layer.

        Args:
            layer ([`NeuronTuneLayer`]): The layer.
            hidden (`torch.Tensor`): Its neurons, `(B, T, F)`, or `(B * T, F)`.

        Raises:
            ValueError: When the layer does not see every token of every row.
        """
        if not layer.acting((self.name,)):
            return
        flat = hidden.reshape(-1, hidden.shape[-1])  # (B * T, F)
        if len(flat) != len(self.positions) * self.length:
            raise ValueError(
                f"got neurons of {len(flat)} tokens in a batch of {len(self.positions)} rows of {self.length}; "
                "expected those of every token, to tell the rows apart; use modulation='static' for this model"
            )
        chosen = flat[self.flat_positions.to(flat.device)]  # (B * P, F)
        self.add(layer, chosen[:, layer.neurontune_index[self.name]].float())

    def add(self, layer: Scaling, features: Tensor) -> None:
        """
        Take in the activations of one layer's neurons.

        Args:
            layer ([`NeuronTuneLayer`]): The layer.
            features (`torch.Tensor`): Shape `(B * P, k)`, float32.
        """
        if self.keep_features:
            self.features[id(layer)] = features
        if self.name in layer.neurontune_trigger:
            # A sum and no matrix product, whose last bits depend on the number of rows.
            part = (features * layer.neurontune_trigger[self.name]).sum(dim=-1).view(self.positions.shape)
            self.score = part if self.score is None else self.score + part.to(self.score.device)


def prompt_ends(input_ids: Tensor, attention_mask: Tensor | None, suffix: Sequence[int] | None) -> Tensor:
    """
    Where each row's last prompt ends: at the last token of the last generation prompt.

    Args:
        input_ids (`torch.Tensor`): Shape `(B, T)`.
        attention_mask (`torch.Tensor`, *optional*): Shape `(B, T)`, 0 at padding on either side.
        suffix (`Sequence[int]`, *optional*): Token ids of the generation prompt; without it, the row's last token.

    Returns:
        `torch.Tensor`: Positions, shape `(B,)`, int64; `NOWHERE` in rows without generation prompt.
    """
    rows, length = input_ids.shape
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    places = torch.arange(length, device=input_ids.device)
    if suffix is None:
        return torch.where(real, places, NOWHERE).amax(dim=1)
    if len(suffix) > length:
        return torch.full((rows,), NOWHERE, device=input_ids.device)
    wanted = torch.tensor(list(suffix), device=input_ids.device)
    windows = input_ids.unfold(1, len(suffix), 1) == wanted  # (B, T - L + 1, L)
    found = windows.all(dim=-1) & real.unfold(1, len(suffix), 1).all(dim=-1)
    ends = places[len(suffix) - 1 :]
    return torch.where(found, ends, NOWHERE).amax(dim=1)


def gated(config: Any, scores: Tensor) -> Tensor:
    """
    Strengths that follow from scores (`ours`): `off + (on - off) * gate(score - threshold)`.

    Args:
        config ([`NeuronTuneConfig`]): The adapter's configuration.
        scores (`torch.Tensor`): Any shape; NaN stands for a row without prompt end, whose strength is `strength_off`.
    """
    above = scores - config.trigger_threshold
    gate = (above > 0).float() if config.trigger_gate == "step" else torch.sigmoid(above).nan_to_num(0.0)
    return config.strength_off + (config.strength_on - config.strength_off) * gate
