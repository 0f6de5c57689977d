"""What does a trigger see of a request? The activations of an adapter's neurons where its prompt ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from neurontune_peft.objectives import call_options
from neurontune_peft.prompts import encode
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.tuner.rows import RowPlan, row_plan
from neurontune_peft.tuner.trigger import Reading, prompt_ends, turns


def trigger_features(
    model: PeftModel,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    adapter_name: str,
    suffix: Sequence[int] | None,
    opening: Sequence[int] | None,
    batch_size: int = 16,
    max_length: int | None = None,
    chat_template: str | None = None,
) -> dict[str, Tensor]:
    """
    Unscaled activations of an adapter's neurons where prompts end, and their means over the user's turn.

    Args:
        model (`PeftModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        texts (`Sequence[str]`): Requests, put into the chat template.
        adapter_name (`str`): The adapter.
        suffix (`Sequence[int]`, *optional*): Token ids of the generation prompt.
        opening (`Sequence[int]`, *optional*): Token ids that open a user's turn.
        batch_size (`int`, *optional*, defaults to `16`): Requests per forward pass.
        max_length (`int`, *optional*): Most tokens of a request; the model's context when left out.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        `dict[str, torch.Tensor]`: Site to activations and means of shape `(n, k, 2)`, float32, on the CPU.
    """
    tuner: Any = model.base_model
    layers = tuner.neuron_layers(adapter_name)
    base = model.get_base_model()
    max_length = context_length(base) if max_length is None else max_length
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # rows of a batch of about equal length
    found: dict[str, list[Tensor]] = {site: [] for site in layers}
    with evaluating(model), torch.no_grad(), logging.tqdm(total=len(texts), desc="read trigger", unit="prompt") as bar:
        for start in range(0, len(texts), batch_size):
            rows = [texts[i] for i in order[start : start + batch_size]]
            # Logits are not looked at; those of whole prompts are large.
            batch = encode(tokenizer, rows, chat_template=chat_template, max_length=max_length).to(base.device)
            ends = prompt_ends(batch.input_ids, batch.attention_mask, suffix)
            turn = turns(batch.input_ids, batch.attention_mask, opening, ends)
            reading = Reading(adapter_name, ends.unsqueeze(1), batch.input_ids.shape[1], turn, keep_features=True)
            plan = RowPlan(rows=len(rows), resting=frozenset([adapter_name]), readings=(reading,))
            with row_plan(plan):
                options = call_options(base, batch, logits_to_keep=1)
                base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
            for site, layer in layers.items():
                found[site].append(reading.features[id(layer)].cpu())
            bar.update(len(rows))
    back = torch.tensor(order).argsort()
    return {site: torch.cat(parts)[back] for site, parts in found.items()}
