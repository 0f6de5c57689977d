"""Reading a trigger: where a request ends, what the adapter's neurons say there, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurontune_peft.tuner.windows import window_means

if TYPE_CHECKING:
    from neurontune_peft.tuner.scaling import Scaling

# Two weights per neuron then take the room of one float; it has the range of float32, which weights that hold the
# scale of activations need.
TRIGGER_DTYPE = torch.bfloat16
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
        turn (`torch.Tensor`, *optional*): True at the tokens of each row's turn, shape `(B, T)`, over which means are
            read too.
        window (`int`, *optional*): Number of tokens of each mean; without it, the whole turn.
        keep_features (`bool`, *optional*, defaults to `False`): Keep the activations, not only their weighted sums.
        score (`torch.Tensor`, *optional*): Weighted sum at the positions so far, shape `(B, P)`.
        turn_scores (`torch.Tensor`, *optional*): Weighted sum at each token so far, shape `(B, T)`; of meaning in the
            turn alone.
        features (`dict`, *optional*): `id` of the layer to activations at the positions, shape `(B * P, k)`, and means
            over the windows of the turn, `(B, W, k)`, as [`window_means`] gives them; `None` without a turn.
    """

    name: str
    positions: Tensor
    length: int
    turn: Tensor | None = None
    window: int | None = None
    keep_features: bool = False
    score: Tensor | None = None
    turn_scores: Tensor | None = None
    features: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

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
        index = layer.neurontune_index[self.name]
        chosen = flat[self.flat_positions.to(flat.device)]  # (B * P, F)
        over = None if self.turn is None else flat[:, index].float()
        self.add(layer, chosen[:, index].float(), over)

    def add(self, layer: Scaling, features: Tensor, over: Tensor | None) -> None:
        """
        Take in the activations of one layer's neurons.

        Args:
            layer ([`NeuronTuneLayer`]): The layer.
            features (`torch.Tensor`): At the positions, shape `(B * P, k)`, float32.
            over (`torch.Tensor`, *optional*): At every token, shape `(B * T, k)`, float32; where there is a turn.
        """
        weights = layer.neurontune_trigger[self.name].float() if self.name in layer.neurontune_trigger else None
        turn = None if self.turn is None else self.turn.to(features.device)
        if self.keep_features:
            # (B, W, k)
            means = (
                None
                if over is None or turn is None
                else window_means(over.view(*turn.shape, -1), turn, self.window)[0]
            )
            self.features[id(layer)] = (features, means)
        if weights is None:
            return
        # Sums and no matrix products, whose last bits depend on the number of rows.
        part = (features * weights[:, 0]).sum(dim=-1).view(self.positions.shape)  # (B, P)
        self.score = part if self.score is None else self.score + part.to(self.score.device)
        if over is not None and turn is not None:
            each = (over * weights[:, 1]).sum(dim=-1).view(turn.shape)  # (B, T)
            self.turn_scores = (
                each if self.turn_scores is None else self.turn_scores + each.to(self.turn_scores.device)
            )


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
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    if suffix is None:
        return torch.where(real, places, NOWHERE).amax(dim=1)
    return torch.where(ends_of(input_ids, real, suffix), places, NOWHERE).amax(dim=1)


def ends_of(input_ids: Tensor, real: Tensor, wanted: Sequence[int]) -> Tensor:
    """
    Whether a sequence of tokens ends at each place.

    Args:
        input_ids (`torch.Tensor`): Shape `(B, T)`.
        real (`torch.Tensor`): False at padding, bool, shape `(B, T)`.
        wanted (`Sequence[int]`): The sequence.

    Returns:
        `torch.Tensor`: Bool, shape `(B, T)`.
    """
    found = torch.zeros_like(real)
    if len(wanted) <= input_ids.shape[1]:
        ids = torch.tensor(list(wanted), device=input_ids.device)
        windows = (input_ids.unfold(1, len(wanted), 1) == ids).all(dim=-1)  # (B, T - L + 1)
        found[:, len(wanted) - 1 :] = windows & real.unfold(1, len(wanted), 1).all(dim=-1)
    return found


def turns(input_ids: Tensor, attention_mask: Tensor | None, opening: Sequence[int] | None, ends: Tensor) -> Tensor:
    """
    The tokens of each row's last turn: those after the last opening, up to where the prompt ends.

    Args:
        input_ids (`torch.Tensor`): Shape `(B, T)`.
        attention_mask (`torch.Tensor`, *optional*): Shape `(B, T)`, 0 at padding on either side.
        opening (`Sequence[int]`, *optional*):
            Token ids that open a user's turn. Without it, or in a row that lacks it, the turn begins with the row's
            second token, as the first is often one of extreme activations.
        ends (`torch.Tensor`):
            Where prompts end, shape `(B,)`; with `NOWHERE` the turn goes on to the row's last token.

    Returns:
        `torch.Tensor`: Bool, shape `(B, T)`.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    upto = torch.where(ends == NOWHERE, input_ids.shape[1], ends).unsqueeze(1)  # (B, 1)
    first = torch.where(real, places, input_ids.shape[1]).amin(dim=1)  # (B,)
    if opening is not None:
        opened = ends_of(input_ids, real, opening) & (places < upto)
        last = torch.where(opened, places, NOWHERE).amax(dim=1)
        first = torch.where(last == NOWHERE, first, last)
    return real & (places > first.unsqueeze(1)) & (places <= upto)


def gated(config: Any, scores: Tensor) -> Tensor:
    """
    Strengths that follow from scores (`ours`): `off + (on - off) * gate(score - threshold)`.

    The gate is a step, a sigmoid, or a ramp from 0 at the threshold to 1 at `trigger_ramp` above it.

    Args:
        config ([`NeuronTuneConfig`]): The adapter's configuration.
        scores (`torch.Tensor`): Any shape; NaN stands for a row without prompt end, whose strength is `strength_off`.
    """
    above = scores - config.trigger_threshold
    if config.trigger_gate == "step":
        gate = (above > 0).float()
    elif config.trigger_gate == "ramp":
        gate = (above / config.trigger_ramp).nan_to_num(0.0).clamp(0, 1)
    else:
        gate = torch.sigmoid(above).nan_to_num(0.0)
    return config.strength_off + (config.strength_on - config.strength_off) * gate
