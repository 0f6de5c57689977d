"""What does a trigger see of a request? The activations of an adapter's neurons where it ends, and over its turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from neurontune_peft.objectives import call_options
from neurontune_peft.prompts import encode
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.training.logistic import Linear
from neurontune_peft.tuner.rows import RowPlan, row_plan
from neurontune_peft.tuner.trigger import Reading, prompt_ends, turns
from neurontune_peft.tuner.windows import window_means


@dataclass(frozen=True)
class Features:
    """
    Unscaled activations of k neurons for n requests, float32, on the CPU.

    Args:
        ends (`torch.Tensor`): Where prompts end, shape `(n, k)`.
        windows (`torch.Tensor`): Their means over the m windows of all turns, shape `(m, k)`.
        requests (`torch.Tensor`): The request of each window, rising, shape `(m,)`, int64; each has at least one.
        counts (`Mapping[str, int]`): Site to the number of its neurons, in the order in which they stand.
    """

    ends: Tensor
    windows: Tensor
    requests: Tensor
    counts: Mapping[str, int]

    def of(self, chosen: Tensor) -> Features:
        """Those of some requests; `chosen` is bool, shape `(n,)`."""
        kept = chosen[self.requests]
        places = chosen.cumsum(dim=0) - 1
        return Features(self.ends[chosen], self.windows[kept], places[self.requests[kept]], self.counts)

    def score(self, trigger: Linear) -> Tensor:
        """
        Scores of the requests, as triggers work them out, float64, shape `(n,)`.

        Args:
            trigger ([`Linear`]): Its weights are of activations where prompts end, and of means, shape `(k, 2)`.
        """
        weights = trigger.weights.float()
        sums = self.ends @ weights[:, 0] + self.highest(self.windows @ weights[:, 1])
        return sums.double() + trigger.bias

    def highest(self, scores: Tensor) -> Tensor:
        """The highest score of each request's windows, shape `(n,)`, from those of all windows, `(m,)`."""
        lowest = scores.new_full((len(self.ends),), -torch.inf)
        return lowest.scatter_reduce(0, self.requests, scores, reduce="amax", include_self=False)

    @property
    def means(self) -> Tensor:
        """Of requests of one window each: activations where prompts end, and their means, shape `(n, k, 2)`."""
        return torch.stack([self.ends, self.windows], dim=-1)


def trigger_features(
    model: PeftModel,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    adapter_name: str,
    suffix: Sequence[int] | None,
    opening: Sequence[int] | None,
    window: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    chat_template: str | None = None,
) -> Features:
    """
    Unscaled activations of an adapter's neurons where prompts end, and their means over windows of the user's turn.

    Args:
        model (`PeftModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        texts (`Sequence[str]`): Requests, put into the chat template.
        adapter_name (`str`): The adapter.
        suffix (`Sequence[int]`, *optional*): Token ids of the generation prompt.
        opening (`Sequence[int]`, *optional*): Token ids that open a user's turn.
        window (`int`, *optional*): Number of tokens of a window; without it, the whole turn is one.
        batch_size (`int`, *optional*, defaults to `16`): Requests per forward pass.
        max_length (`int`, *optional*): Most tokens of a request; the model's context when left out.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Features`]: In the order of the texts.
    """
    tuner: Any = model.base_model
    layers = tuner.neuron_layers(adapter_name)
    base = model.get_base_model()
    max_length = context_length(base) if max_length is None else max_length
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # rows of a batch of about equal length
    ends_found: list[Tensor] = []
    windows_found: list[Tensor] = []
    counts_found: list[Tensor] = []
    with evaluating(model), torch.no_grad(), logging.tqdm(total=len(texts), desc="read trigger", unit="prompt") as bar:
        for start in range(0, len(texts), batch_size):
            rows = [texts[i] for i in order[start : start + batch_size]]
            # Logits are not looked at; those of whole prompts are large.
            batch = encode(tokenizer, rows, chat_template=chat_template, max_length=max_length).to(base.device)
            ends = prompt_ends(batch.input_ids, batch.attention_mask, suffix)
            turn = turns(batch.input_ids, batch.attention_mask, opening, ends)
            reading = Reading(
                adapter_name, ends.unsqueeze(1), batch.input_ids.shape[1], turn, window, keep_features=True
            )
            plan = RowPlan(rows=len(rows), resting=frozenset([adapter_name]), readings=(reading,))
            with row_plan(plan):
                options = call_options(base, batch, logits_to_keep=1)
                base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
            exists = window_means(turn.float(), turn, window)[1].cpu()  # (B, W)
            read = [reading.features[id(layer)] for layer in layers.values()]
            ends_found.append(torch.cat([part.cpu() for part, _ in read], dim=-1))
            windows_found.append(torch.cat([part.cpu()[exists] for _, part in read if part is not None], dim=-1))
            counts_found.append(exists.sum(dim=1))
            bar.update(len(rows))
    requests = torch.tensor(order).repeat_interleave(torch.cat(counts_found))  # (m,)
    by_request = requests.argsort(stable=True)
    back = torch.tensor(order).argsort()
    counts = {site: layer.neurontune_index[adapter_name].numel() for site, layer in layers.items()}
    return Features(torch.cat(ends_found)[back], torch.cat(windows_found)[by_request], requests[by_request], counts)
