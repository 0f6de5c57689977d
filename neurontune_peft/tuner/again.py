"""Making a call again for those of its rows alone whose decision changes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.utils import ModelOutput

from neurontune_peft.tuner.deciding import Call
from neurontune_peft.tuner.kept import Record
from neurontune_peft.tuner.rows import RowPlan, row_plan

# Of what a model returns, the parts whose rows are put together here.
KNOWN_OUTPUTS = {"logits", "past_key_values"}


def rows_again(call: Call, record: Record, plan: RowPlan, output: Any) -> Any:
    """
    The output of a call with the rows that trigger computed again, and its cache with theirs.

    Args:
        call ([`Call`]): The call, whose tokens are the first in its cache.
        record ([`Record`]): What was decided.
        plan ([`RowPlan`]): What follows for all rows.
        output (`Any`): What the call returned.

    Returns:
        `Any`: The output, or `None` where rows cannot be taken apart: all of them are to be computed again then.
    """
    assert call.inputs is not None
    count = len(call.tokens)
    rows = (
        torch.stack([verdict.strengths.cpu() != 0 for verdict in record.verdicts.values()]).any(dim=0).nonzero()[:, 0]
    )
    inputs = part_of_inputs(call.inputs, rows, count)
    cache = output.get("past_key_values") if isinstance(output, ModelOutput) else None
    if len(rows) in (0, count) or plan.rows != count or inputs is None or not rows_can_be_replaced(output, cache):
        return None
    own = DynamicCache() if cache is not None else None
    if own is not None:
        inputs["past_key_values"] = own
    some = RowPlan(
        rows=len(rows),
        adapter_names=None if plan.adapter_names is None else tuple(plan.adapter_names[row] for row in rows.tolist()),
        decided={name: strengths[rows.to(strengths.device)] for name, strengths in plan.decided.items()},
        resting=plan.resting,
        acts=None if plan.acts is None else plan.acts[rows.to(plan.acts.device)],
        call=replace(call, inputs=None),
    )
    with row_plan(some):
        found = call.model.forward(**inputs)
    with torch.no_grad():
        output.logits[rows.to(output.logits.device)] = found.logits
        for layer, new in zip(
            cache.layers if cache is not None else [], own.layers if own is not None else [], strict=True
        ):
            layer.keys[rows.to(layer.keys.device)] = new.keys
            layer.values[rows.to(layer.values.device)] = new.values
    return output


def part_of_inputs(inputs: Mapping[str, Any], rows: Tensor, count: int) -> dict[str, Any] | None:
    """Arguments of a call for some of its rows; `None` where an argument does not say which part is whose."""
    found = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.ndim:
            if value.shape[0] not in (1, count) or (name != "position_ids" and value.shape[0] != count):
                return None
            if value.shape[0] == count:
                found[name] = value[rows.to(value.device)]
        elif isinstance(value, (Mapping, list, tuple)) and not isinstance(value, Cache):
            return None
    return found


def rows_can_be_replaced(output: Any, cache: Any) -> bool:
    """Whether rows of an output and its cache can be replaced one by one."""
    if not isinstance(output, ModelOutput) or not set(output) <= KNOWN_OUTPUTS or "logits" not in output:
        return False
    if output.logits.requires_grad:
        return False
    if cache is None:
        return True
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
