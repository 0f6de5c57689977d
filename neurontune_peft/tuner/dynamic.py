"""
Dynamic modulation: a call of the base model decides the strength of each of its rows.

The base model computes with resting scales while triggers are read. When nothing triggers, that was the call.
Otherwise the call is made again with the strengths that were decided on, for the rows that trigger where they can be
taken apart. A cache remembers the decision for the tokens to come. Two hooks of the base model do all of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.utils import logging

from neurontune_peft.tuner.again import rows_again
from neurontune_peft.tuner.deciding import Call, acts_at, decides_anew, ends_in, judged, plan_of, reading_at, rechecks
from neurontune_peft.tuner.kept import (
    RECORD,
    Record,
    cache_length,
    empty_cache,
    forget_last,
    named_inputs,
    prefix_inputs,
    record_of,
)
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.rows import CURRENT, RowPlan, row_plan
from neurontune_peft.tuner.trigger import NOWHERE, TriggerDecision

logger = logging.get_logger(__name__)


def install_hooks(model: nn.Module) -> None:
    """Have calls of a base model decide about their rows; once per model."""
    if before_call not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(before_call, with_kwargs=True)
        model.register_forward_hook(after_call, with_kwargs=True, always_call=True)


def remove_hooks(model: nn.Module) -> None:
    """Take back [`install_hooks`]."""
    for kind, hook in (("pre_", before_call), ("", after_call)):
        hooks = getattr(model, f"_forward_{kind}hooks")
        for key in [key for key, found in hooks.items() if found is hook]:
            del hooks[key]
            getattr(model, f"_forward_{kind}hooks_with_kwargs").pop(key, None)
            model._forward_hooks_always_called.pop(key, None)


def before_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The first hook: find or make the plan of a call."""
    if CURRENT.plan is not None and (CURRENT.plan.strengths is not None or CURRENT.plan.readings):
        return  # strengths that were asked for go before those that a trigger decides
    plan = decoding_plan(model, kwargs)
    if plan is None:
        plan = opening_plan(model, args, kwargs)
    if plan is not None:
        CURRENT.plan = plan


def after_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The second hook: decide, and make the call again where that changes it. Runs after a failed call too."""
    plan = CURRENT.plan
    if plan is None or plan.call is None or plan.call.model is not model:
        return None
    CURRENT.plan = plan.call.before
    if output is None or plan.call.inputs is None:
        return None
    return close_call(plan, args, kwargs, output)


def decoding_plan(model: nn.Module, kwargs: Mapping[str, Any]) -> RowPlan | None:
    """The plan of a decoding step, one token per row behind a cache with a decision; `None` for other calls."""
    ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
    record = record_of(cache)
    if record is None or ids is None or ids.shape[1] != 1 or record.rechecks or model.training:
        return None
    if not torch.compiler.is_compiling():
        past = cache_length(cache)
        if past == 0 or record.awaits:  # emptied by its owner, or the end of a prompt that comes in pieces
            return None
        record.tokens.append((past, ids))
    decided = {} if not record.verdicts else {name: verdict.strengths for name, verdict in record.verdicts.items()}
    return RowPlan(
        rows=record.rows,
        adapter_names=record.adapter_names,
        decided=decided,
        resting=record.resting,
        call=Call(model=model, before=CURRENT.plan),
    )


@torch.compiler.disable
def opening_plan(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RowPlan | None:
    """The plan under which a call is made first, with what is to be read; `None` where no trigger is asked."""
    layers = [module for module in model.modules() if isinstance(module, NeuronTuneLayer)]
    if not layers or any(layer.disable_adapters or layer.merged for layer in layers):
        return None
    names = asked_triggers(model, layers)
    if not names or is_static_now(model, layers, names):
        return None
    check_one_adapter(model, layers, names)
    inputs = named_inputs(model, args, kwargs)
    check_separate_rows(inputs)
    cache = inputs.get("past_key_values")
    past = cache_length(cache)
    call = Call(model, CURRENT.plan, inputs=inputs, past=past, record=record_of(cache) if past else None)
    call = replace(call, ends={name: ends_in(call, call.config(name)) for name in names})
    adapter_names = names_of_rows(len(call.tokens))
    if call.record is not None and not decides_anew(call):
        return plan_of(call.record, call, readings=rechecks(call))
    call = with_base_states(call, adapter_names, names)
    return RowPlan(
        rows=len(call.tokens),
        adapter_names=adapter_names,
        resting=frozenset(names),
        readings=tuple(reading_at(call, name) for name in names),
        call=call,
    )


def asked_triggers(model: Any, layers: list[NeuronTuneLayer]) -> list[str]:
    """The adapters of this call whose triggers decide."""
    plan = CURRENT.plan
    asked = layers[0].active_adapters if plan is None or plan.adapter_names is None else plan.adapter_names
    held = {name for layer in layers for name in layer.neurontune_trigger}
    return sorted({name for name in asked if name in held and model.peft_config[name].modulation == "dynamic"})


def is_static_now(model: nn.Module, layers: list[NeuronTuneLayer], names: list[str]) -> bool:
    """Whether scales are being trained, which they are for the requests that trigger: on every row."""
    deltas = [x.neurontune_delta[name] for x in layers for name in names if name in x.neurontune_delta]
    trains = model.training or (torch.is_grad_enabled() and any(delta.requires_grad for delta in deltas))
    if trains:
        logger.warning_once(
            f"got adapters {names} with dynamic modulation in training; their scales act on every row, at strength 1; "
            "call eval() and torch.no_grad(), or freeze them, to have the trigger decide"
        )
    return trains


def check_separate_rows(inputs: Mapping[str, Any]) -> None:
    """
    Refuse several requests in one row.

    Raises:
        ValueError: When the call holds packed sequences.
    """
    if inputs.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "got packed requests (cu_seq_lens_q); expected one request per row, as each has a strength of its own; "
            "pad them, or pass neurontune_strength"
        )


def check_one_adapter(model: Any, layers: list[NeuronTuneLayer], names: list[str]) -> None:
    """
    Refuse several active adapters where one of them decides again while it generates.

    Raises:
        ValueError: Names the adapters.
    """
    by_row = CURRENT.plan is not None and CURRENT.plan.adapter_names is not None
    active = layers[0].active_adapters
    if not by_row and len(active) > 1 and any(model.peft_config[name].recheck_every is not None for name in names):
        raise ValueError(
            f"got the active adapters {active}, one of which has recheck_every; expected it alone, as it acts from "
            "some token on; choose one with set_adapter, or one per row with adapter_names"
        )


def names_of_rows(rows: int) -> tuple[str, ...] | None:
    """The adapter of each row of a call, where beams repeat the names that were passed."""
    plan = CURRENT.plan
    if plan is None or plan.adapter_names is None:
        return None
    return tuple(name for name in plan.adapter_names for _ in range(rows // plan.rows))


def with_base_states(call: Call, adapter_names: tuple[str, ...] | None, names: list[str]) -> Call:
    """Fill a cache again with resting scales, if others filled it: triggers are read from the base model's states."""
    if call.record is None or call.record.resting >= set(names):
        return call
    plan = RowPlan(rows=len(call.tokens), adapter_names=adapter_names, resting=frozenset(names))
    refill(call, plan)
    return replace(call, refilled=True)


def refill(call: Call, plan: RowPlan) -> None:
    """
    Fill the cache of a call again under another plan.

    Raises:
        ValueError: When its tokens are not known.
    """
    assert call.inputs is not None
    ids = None if call.record is None else call.record.ids(call.past)
    if ids is None:
        raise ValueError(
            f"got a new turn behind a cache of {call.past} tokens that were not all seen; expected to know them, as "
            "the decision about this turn changes them; pass the whole conversation without past_key_values"
        )
    empty_cache(call.inputs["past_key_values"])
    with row_plan(plan):
        call.model.forward(**prefix_inputs(call.model, call.inputs, ids))


@torch.compiler.disable
def close_call(plan: RowPlan, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Decide about the rows of a call, make it again where necessary, and have the cache remember."""
    call = plan.call
    assert call is not None
    record = judged(plan, call)
    if plan.readings:
        report(plan, record)
        output = made_again(call, record, args, kwargs, output)
    cache = found_cache(call, output)
    if cache is not None:
        if call.inputs is not None and call.inputs.get("input_ids") is not None:
            record.tokens.append((call.past, call.tokens))
        setattr(cache, RECORD, record)
    return output


def made_again(call: Call, record: Record, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """The output of a call under the strengths that were decided on; the one it has, where nothing changes."""
    assert call.inputs is not None
    length = call.tokens.shape[1]
    changed = [verdict for name, verdict in record.verdicts.items() if name not in record.resting]
    fresh = call.record is None or call.refilled or decides_anew(call)
    whole = fresh and any(bool(((v.strengths != 0) & (v.starts == 0)).any()) for v in changed)
    inside = any(
        bool(((v.strengths != 0) & (v.starts > call.past) & (v.starts < call.past + length)).any()) for v in changed
    )
    earlier = call.refilled and bool(changed)
    if not (whole or inside or earlier):
        return output
    plan = replace_acts(plan_of(record, call), acts_at(record, call.past, length))
    joined = rows_again(call, record, plan, output) if call.past == 0 else None
    if joined is not None:
        return joined
    cache = call.inputs.get("past_key_values")
    again = replace(call, inputs=None)
    if isinstance(cache, Cache):
        if call.past == 0:
            empty_cache(cache)
        elif (whole or earlier) and call.record is not None:
            refill(call, replace_acts(plan_of(record, call), acts_at(record, 0, call.past)))
        else:
            forget_last(cache, length)
    with row_plan(replace(plan, call=again)):
        return call.model.forward(*args, **kwargs)


def replace_acts(plan: RowPlan, acts: Tensor | None) -> RowPlan:
    """The same plan for other positions."""
    return replace(plan, acts=acts, tables={}, dense_tables={})


def report(plan: RowPlan, record: Record) -> None:
    """Tell an observer, if there is one, what was decided."""
    if CURRENT.observer is None or plan.call is None:
        return
    decisions = []
    configs: Any = plan.call.model.peft_config
    for reading in plan.readings:
        assert reading.score is not None
        strengths = record.verdicts[reading.name].strengths.tolist()
        fires = reading.score > configs[reading.name].trigger_threshold  # (B, P)
        # The score that decided: the first above the threshold, or else the highest.
        highest = reading.score.nan_to_num(-torch.inf).argmax(dim=1)
        chosen = torch.where(fires.any(dim=1), fires.int().argmax(dim=1), highest).unsqueeze(1)  # (B, 1)
        scores = reading.score.gather(1, chosen).squeeze(1).tolist()
        places = reading.positions.gather(1, chosen).squeeze(1).tolist()
        for row, (strength, score, place) in enumerate(zip(strengths, scores, places, strict=True)):
            if plan.adapter_names is None or plan.adapter_names[row] == reading.name:
                read = place != NOWHERE
                decisions.append(
                    TriggerDecision(
                        row=row,
                        adapter_name=reading.name,
                        position=place + plan.call.past if read else None,
                        score=score if read else None,
                        strength=strength,
                    )
                )
    CURRENT.observer(decisions)


def found_cache(call: Call, output: Any) -> Cache | None:
    """The cache that goes on from a call: the one that was passed, or the one that the model made."""
    assert call.inputs is not None
    parts = list(output.values()) if isinstance(output, Mapping) else output if isinstance(output, tuple) else []
    caches = [part for part in (call.inputs.get("past_key_values"), *parts) if isinstance(part, Cache)]
    return caches[0] if caches else None
