"""What triggers decide in one call of the base model: where they are read, and what follows for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.tuner.kept import NEVER, Record, Verdict, flat_mask
from neurontune_peft.tuner.rows import RowPlan
from neurontune_peft.tuner.trigger import NOWHERE, Reading, gated, prompt_ends, turns
from neurontune_peft.tuner.windows import highest_window

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Call:
    """
    One call of the base model.

    Args:
        model (`nn.Module`): The base model.
        before (`RowPlan`, *optional*): The plan that holds outside of the call.
        inputs (`Mapping[str, Any]`, *optional*): Arguments by name; `None` for a decoding step, which decides nothing.
        record ([`Record`], *optional*): What the cache remembers.
        past (`int`, *optional*, defaults to `0`): Number of tokens in the cache.
        refilled (`bool`, *optional*, defaults to `False`): The cache was filled again, with resting scales.
        ends (`Mapping[str, torch.Tensor]`, *optional*):
            Adapter to where prompts end in this call, shape `(B,)`, counted from the start of the cache.
    """

    model: nn.Module
    before: RowPlan | None
    inputs: Mapping[str, Any] | None = None
    record: Record | None = None
    past: int = 0
    refilled: bool = False
    ends: Mapping[str, Tensor] | None = None

    def config(self, name: str) -> Any:
        """The configuration of an adapter; PEFT hangs them on the base model."""
        model: Any = self.model
        return model.peft_config[name]

    @property
    def tokens(self) -> Tensor:
        """Token ids `(B, T)`, or their embeddings `(B, T, H)`."""
        assert self.inputs is not None
        ids = self.inputs.get("input_ids")
        return self.inputs["inputs_embeds"] if ids is None else ids


def ends_in(call: Call, config: Any) -> Tensor:
    """Where prompts end among the tokens of a call, shape `(B,)`, counted from the cache's start; else `NOWHERE`."""
    assert call.inputs is not None
    tokens, length = call.tokens, call.past + call.tokens.shape[1]
    mask = flat_mask(call.inputs.get("attention_mask"), len(tokens), length)
    suffix = config.trigger_suffix
    if suffix is None or call.inputs.get("input_ids") is None:
        if call.record is not None:  # without a template nothing tells a new turn from an answer
            return torch.full((len(tokens),), NOWHERE, device=tokens.device)
        what = "inputs_embeds" if call.inputs.get("input_ids") is None else "no trigger_suffix"
        logger.warning_once(
            f"got {what}, which does not tell where a prompt ends; the trigger is read at each row's last token; fit "
            "the trigger with a tokenizer that has a chat template, and pass input_ids"
        )
        places = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        return prompt_ends(places, None if mask is None else mask[:, call.past :], None) + call.past
    before = None if call.record is None else call.record.ids(call.past)
    if before is None:
        found = prompt_ends(tokens, None if mask is None else mask[:, call.past :], suffix)
        return torch.where(found == NOWHERE, NOWHERE, found + call.past)
    found = prompt_ends(torch.cat([before, tokens], dim=1), mask, suffix)
    return torch.where(found < call.past, NOWHERE, found)


def decides_anew(call: Call) -> bool:
    """Whether a prompt ends in a call that goes on from a cache with a decision."""
    assert call.ends is not None
    return any(bool((ends != NOWHERE).any()) for ends in call.ends.values())


def reading_at(call: Call, name: str) -> Reading:
    """Read a trigger where prompts end, and every so many tokens from there on if it is to be checked again."""
    assert call.ends is not None
    length = call.tokens.shape[1]
    positions = torch.where(call.ends[name] == NOWHERE, NOWHERE, call.ends[name] - call.past).unsqueeze(1)  # (B, 1)
    every = call.config(name).recheck_every
    if every is not None:
        later = positions + torch.arange(0, length, every, device=positions.device)  # (B, P)
        positions = torch.where((positions == NOWHERE) | (later >= length), NOWHERE, later)
    window = call.config(name).trigger_window
    return Reading(name=name, positions=positions, length=length, turn=turn_in(call, name), window=window)


def turn_in(call: Call, name: str) -> Tensor:
    """The tokens of this call that belong to the turn about which a trigger decides, bool, shape `(B, T)`."""
    assert call.inputs is not None
    assert call.ends is not None
    ends, opening = call.ends[name], call.config(name).trigger_opening
    mask = flat_mask(call.inputs.get("attention_mask"), len(call.tokens), call.past + call.tokens.shape[1])
    if call.inputs.get("input_ids") is None:
        ids, opening = torch.zeros(call.tokens.shape[:2], dtype=torch.long, device=ends.device), None
    else:
        ids = call.tokens
    before = None if call.record is None else call.record.ids(call.past)
    if before is None:
        shown = None if mask is None else mask[:, call.past :]
        return turns(ids, shown, opening, torch.where(ends == NOWHERE, NOWHERE, ends - call.past))
    found = turns(torch.cat([before, ids], dim=1), mask, opening, ends)[:, call.past :]
    old = None if call.record is None else call.record.verdicts.get(name)
    places = torch.arange(call.past, call.past + ids.shape[1], device=ends.device)
    return found if old is None else found & (places > old.ends.unsqueeze(1))


def rechecks(call: Call) -> tuple[Reading, ...]:
    """Readings of triggers whose time has come again in rows that have not triggered yet, or whose turn goes on."""
    assert call.record is not None
    assert call.ends is not None
    length = call.tokens.shape[1]
    readings = []
    for name in call.ends:
        verdict = call.record.verdicts.get(name)
        if verdict is None:
            continue
        waits = (verdict.ends == NOWHERE).unsqueeze(1)  # (B, 1)
        positions = due_again(call, name, verdict) if call.config(name).recheck_every is not None else None
        if positions is not None or bool(waits.any()):
            nowhere = torch.full((len(waits), 1), NOWHERE, device=waits.device)
            positions = nowhere if positions is None else positions
            turn = turn_in(call, name) & waits
            window = call.config(name).trigger_window
            readings.append(Reading(name=name, positions=positions, length=length, turn=turn, window=window))
    return tuple(readings)


def due_again(call: Call, name: str, verdict: Verdict) -> Tensor | None:
    """Where a trigger is to be read again in this call, shape `(B, T)`; `None`: in no row."""
    revoked = verdict.starts > call.past  # the token that triggered was taken back
    verdict.starts = torch.where(revoked, NEVER, verdict.starts)
    verdict.strengths = torch.where(revoked, 0.0, verdict.strengths)
    places = torch.arange(call.tokens.shape[1], device=verdict.ends.device)
    since = places + call.past - verdict.ends.unsqueeze(1)  # (B, T)
    due = (since > 0) & (since % call.config(name).recheck_every == 0) & (verdict.ends != NOWHERE).unsqueeze(1)
    due &= (verdict.starts == NEVER).unsqueeze(1)
    return torch.where(due, places, NOWHERE) if bool(due.any()) else None


def judged(plan: RowPlan, call: Call) -> Record:
    """The record after a call."""
    old = {} if call.record is None else call.record.verdicts
    verdicts = dict(old)
    configs: Any = call.model.peft_config
    for reading in plan.readings:
        verdicts[reading.name] = verdict_on(configs[reading.name], reading, call, old.get(reading.name))
    if call.record is not None and not plan.readings:
        return call.record
    silent = [name for name, verdict in verdicts.items() if not bool((verdict.strengths != 0).any())]
    return Record(
        rows=plan.rows,
        adapter_names=plan.adapter_names,
        verdicts=verdicts,
        resting=frozenset(silent),
        rechecks=any(configs[name].recheck_every is not None for name in verdicts),
        awaits=not any(bool((verdict.ends != NOWHERE).any()) for verdict in verdicts.values()),
        tokens=[] if call.record is None else call.record.tokens,
    )


def verdict_on(config: Any, reading: Reading, call: Call, old: Verdict | None) -> Verdict:
    """What a trigger says about each row; rows in which it was not read keep what was decided before."""
    assert call.ends is not None
    device = call.tokens.device
    ends = call.ends[reading.name]
    turn_scores, turn = turn_of(reading, ends, old)
    score = torch.zeros(reading.positions.shape) if reading.score is None else reading.score
    over_turn = highest_window(turn_scores, turn, reading.window).unsqueeze(1)  # (B, 1)
    score = score.detach().to(device) + over_turn + config.trigger_bias
    score = score.masked_fill(reading.positions == NOWHERE, torch.nan)
    reading.score = score  # (B, P)
    strengths = gated(config, score[:, 0])
    starts = torch.zeros_like(ends)
    if config.recheck_every is not None:
        fires = score > config.trigger_threshold  # (B, P)
        first = fires.int().argmax(dim=1)  # (B,)
        place = reading.positions.gather(1, first.unsqueeze(1)).squeeze(1) + call.past
        starts = torch.where(fires.any(dim=1), torch.where(place == ends, 0, place + 1), NEVER)
        strengths = torch.where(starts == NEVER, 0.0, gated(config, score.gather(1, first.unsqueeze(1)).squeeze(1)))
    if old is None:
        return Verdict(strengths=strengths, starts=starts, ends=ends, turn_scores=turn_scores, turn=turn)
    read = (ends != NOWHERE) if config.recheck_every is None else (reading.positions != NOWHERE).any(dim=1)
    return Verdict(
        strengths=torch.where(read, strengths, old.strengths),
        starts=torch.where(read, starts, old.starts),
        ends=torch.where(ends == NOWHERE, old.ends, ends),
        turn_scores=turn_scores,
        turn=turn,
    )


def turn_of(reading: Reading, ends: Tensor, old: Verdict | None) -> tuple[Tensor, Tensor]:
    """Weighted sums at tokens and whether they are of each row's turn, `(B, S)`, with what earlier calls saw of it."""
    assert reading.turn is not None
    turn = reading.turn.to(ends.device)
    scores = torch.zeros(turn.shape) if reading.turn_scores is None else reading.turn_scores.detach()
    scores = scores.to(ends.device)
    if old is None:
        return scores, turn
    if not bool(turn.any()):  # an answer, at whose tokens nothing is kept
        return old.turn_scores, old.turn
    goes_on = ((old.ends == NOWHERE) | (ends == NOWHERE)).unsqueeze(1)
    return torch.cat([old.turn_scores, scores], dim=1), torch.cat([old.turn & goes_on, turn], dim=1)


def plan_of(record: Record, call: Call, *, readings: tuple[Reading, ...] = ()) -> RowPlan:
    """The plan that follows from what was decided, for the tokens of a call."""
    return RowPlan(
        rows=record.rows,
        adapter_names=record.adapter_names,
        decided={name: verdict.strengths for name, verdict in record.verdicts.items()},
        resting=record.resting,
        acts=acts_at(record, call.past, call.tokens.shape[1]),
        readings=readings,
        call=call,
    )


def acts_at(record: Record, first: int, length: int) -> Tensor | None:
    """Where strengths act among the tokens from position `first` on, `(B, length)`; `None`: at all of them."""
    if not record.rechecks:
        return None
    verdicts = record.verdicts
    starts = next(iter(verdicts.values())).starts  # (B,)
    if record.adapter_names is not None:
        whole = starts.new_zeros(())  # rows of static adapters
        rows = enumerate(record.adapter_names)
        starts = torch.stack([verdicts[n].starts[row] if n in verdicts else whole for row, n in rows])
    places = torch.arange(first, first + length, device=starts.device)
    return places >= starts.unsqueeze(1)
