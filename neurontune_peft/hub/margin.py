"""Does an adapter raise or lower refusals? The refusal margin with and without it, on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from neurontune_peft.objectives import RefusalMargin
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.batches import encode


@dataclass(frozen=True)
class MarginEffect:
    """
    Change of the refusal margin, `log p(refusal) - log p(compliance)` in nats per token, over one group of prompts.

    Args:
        group (`str`): `"plain"`, `"attacked"`, `"harmful"` (these two together) or `"benign"`.
        base (`float`): Mean margin of the base model.
        tuned (`float`): Mean margin with the adapter.
        low (`float`): Lower end of the 95 % interval of the mean change (normal approximation, paired; `ours`).
        high (`float`): Its upper end.
        n (`int`): Number of prompts.
    """

    group: str
    base: float
    tuned: float
    low: float
    high: float
    n: int

    @property
    def change(self) -> float:
        """`float`: Mean change; above 0, the adapter makes refusals likelier."""
        return self.tuned - self.base

    def __str__(self) -> str:
        return (
            f"refusal margin on {self.n} {self.group} prompts: {self.base:.2f} to {self.tuned:.2f} nats, change "
            f"{self.change:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
        )


def margin_effects(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    n_prompts: int = 32,
    n_phrases: int = 3,
    batch_size: int = 8,
    chat_template: str | None = None,
) -> dict[str, MarginEffect]:
    """
    Compare a model with and without its adapter.

    Args:
        model (`PeftModel`): Model with the adapter, in evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Test prompts and test attacks are taken; the families take turns.
        n_prompts (`int`, *optional*, defaults to `32`): Most prompts of each group.
        n_phrases (`int`, *optional*, defaults to `3`): Openings of each kind.
        batch_size (`int`, *optional*, defaults to `8`): Prompts at once; each is read with every opening.
        chat_template (`str`, *optional*): As in `encode`.

    Returns:
        `dict[str, MarginEffect]`: By group.
    """
    objective = RefusalMargin.from_texts(
        tokenizer, refusal=prompts.phrases.refusal[:n_phrases], compliance=prompts.phrases.compliance[:n_phrases]
    )
    groups = audit_prompts(prompts, n_prompts)
    texts = [text for group in groups.values() for text in group]
    values: dict[str, list[Tensor]] = {"base": [], "tuned": []}
    device = next(model.parameters()).device
    for start in tqdm(range(0, len(texts), batch_size), desc="refusal margin"):
        batch = encode(tokenizer, texts[start : start + batch_size], chat_template=chat_template).to(device)
        with torch.no_grad():
            values["tuned"].append(objective(model, batch).cpu())
            with model.disable_adapter():
                values["base"].append(objective(model, batch).cpu())
    base, tuned = (torch.cat(values[name]).double() for name in ("base", "tuned"))
    found, start = {}, 0
    for name, group in groups.items():
        part = slice(start, start + len(group))
        found[name] = _effect(name, base[part], tuned[part])
        start += len(group)
    harmful = slice(0, len(groups["plain"]) + len(groups["attacked"]))
    return {"harmful": _effect("harmful", base[harmful], tuned[harmful]), **found}


def audit_prompts(prompts: PromptSet, n_prompts: int) -> dict[str, Sequence[str]]:
    """Plain harmful, attacked harmful and benign test prompts, evenly spread over the set."""
    harmful, benign = (_spread(prompts.select(kind=kind, split="test"), n_prompts) for kind in ("harmful", "benign"))
    families = prompts.families(split="test")
    attacked = []
    for place, family in enumerate(families):
        chosen = prompts.attackable(harmful[place :: len(families)], family=family, split="test")
        attacked += prompts.attacked(chosen, family=family, split="test")
    groups = {"plain": [p.prompt for p in harmful], "attacked": attacked, "benign": [p.prompt for p in benign]}
    if not groups["plain"] or not groups["benign"]:
        raise ValueError("got a prompt set without harmful or benign test prompts; expected both; use the shipped one")
    return {name: group for name, group in groups.items() if group or name == "attacked"}


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def _effect(group: str, base: Tensor, tuned: Tensor) -> MarginEffect:
    n = base.numel()
    if not n:
        return MarginEffect(group, 0.0, 0.0, 0.0, 0.0, 0)
    change = tuned - base
    half = 1.96 * float(change.std()) / math.sqrt(n) if n > 1 else math.inf
    mean = float(change.mean())
    return MarginEffect(group, float(base.mean()), float(tuned.mean()), mean - half, mean + half, n)
