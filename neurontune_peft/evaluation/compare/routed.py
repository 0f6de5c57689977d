"""What if another method acts on the flagged requests? The adapter's trigger in front of it, or of a fixed refusal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerateDecoderOnlyOutput

from neurontune_peft.tuner.gate import TriggerGate

Answer = Callable[..., Any]
Flags = Callable[[Tensor, Tensor], list[bool]]  # from token ids and mask, (B, T), to one decision per row


class GateFlags:
    """
    Decides each prompt once, so that all settings of a dial see the same decisions.

    Args:
        gate ([`TriggerGate`], *optional*): The trigger; without one every request is flagged.
    """

    def __init__(self, gate: TriggerGate | None) -> None:
        self._gate = gate
        self._known: dict[tuple[int, ...], bool] = {}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> list[bool]:
        """One decision per row of `(B, T)`."""
        if self._gate is None:
            return [True] * len(input_ids)
        keys = [tuple(row[mask].tolist()) for row, mask in zip(input_ids, attention_mask.bool(), strict=True)]
        if any(key not in self._known for key in keys):
            scores = self._gate.scores_of(input_ids, attention_mask)
            for key, score in zip(keys, scores, strict=True):
                self._known.setdefault(key, score is not None and score > self._gate.threshold)
        return [self._known[key] for key in keys]


class Routed(nn.Module):
    """
    Each request to one of two models, as a trigger decides.

    Args:
        model (`nn.Module`): Answers what is not flagged: the base model, or a `PeftModel` with its adapters off.
        flags (`Callable`): Decides.
        flagged (`nn.Module`, *optional*): Answers what is flagged; `model` itself, adapters on, when left out.
    """

    def __init__(self, model: nn.Module, flags: Flags, flagged: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self._flags, self._flagged = flags, flagged or model

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """Of the model."""
        return self.model.generation_config

    def get_base_model(self) -> nn.Module:
        """The model itself, as PEFT's wrappers give it."""
        base: nn.Module = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return base

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Logits of each row, `(B, T, V)`, by the model that answers it."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        parts = self._parts(input_ids, mask, lambda answer: lambda **rows: answer(**rows).logits, options)
        first = next(iter(parts.values()))
        logits = first.new_zeros(len(input_ids), *first.shape[1:])
        for rows, part in parts.items():
            logits[list(rows)] = part
        return SimpleNamespace(logits=logits)

    def generate(self, *, input_ids: Tensor, attention_mask: Tensor, pad_token_id: int, **options: Any) -> Any:
        """Token ids of prompts and answers, `(B, T + new)`, padded on the right, and no cache: made at once."""
        whole = options.get("return_dict_in_generate")
        options |= {"pad_token_id": pad_token_id, "return_dict_in_generate": True}
        parts = self._parts(input_ids, attention_mask, lambda answer: answer.generate, options)
        width = max(part.sequences.shape[1] for part in parts.values())
        tokens = input_ids.new_full((len(input_ids), width), pad_token_id)
        for rows, part in parts.items():
            tokens[list(rows), : part.sequences.shape[1]] = part.sequences
        steps = zip(*(part.logits or () for part in parts.values()), strict=False)
        order = torch.tensor([row for rows in parts for row in rows]).argsort()
        logits = tuple(torch.cat(step)[order.to(step[0].device)] for step in steps)  # of (B, V)
        return GenerateDecoderOnlyOutput(sequences=tokens, logits=logits or None) if whole else tokens

    def _parts(
        self, input_ids: Tensor, attention_mask: Tensor, method: Answer, options: dict[str, Any]
    ) -> dict[tuple[int, ...], Any]:
        """Rows to what their model makes of them; what is not flagged meets no adapter at all."""
        flags = self._flags(input_ids, attention_mask)
        found: dict[tuple[int, ...], Any] = {}
        for flagged in (False, True):
            rows = [row for row, flag in enumerate(flags) if flag == flagged]
            if not rows:
                continue
            given = {"input_ids": input_ids[rows], "attention_mask": attention_mask[rows]}
            given |= {name: value[rows] if isinstance(value, Tensor) else value for name, value in options.items()}
            if flagged:
                found[tuple(rows)] = method(self._flagged)(**given)
            else:
                with without_adapters(self.model):
                    found[tuple(rows)] = method(self.model)(**given)
        return found


class CannedRefusal(nn.Module):
    """
    Answers every request with one sentence, without any model.

    It has no probabilities. Teacher-forced on another answer, each token counts as one of V equally likely ones (a
    certain refusal would make the perplexity infinite), so that a flagged harmless request costs `log V` nats per
    token (`ours`).

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        sentence (`str`): What it says.
        vocabulary (`int`): V, the number of logits of the base model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sentence: str, vocabulary: int) -> None:
        super().__init__()
        self._ids: list[int] = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        self._vocabulary = vocabulary

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> Any:
        """Equal logits, `(B, K, V)`."""
        kept = logits_to_keep or input_ids.shape[1]
        return SimpleNamespace(logits=torch.zeros(len(input_ids), kept, self._vocabulary, device=input_ids.device))

    def generate(self, *, input_ids: Tensor, max_new_tokens: int, **options: Any) -> GenerateDecoderOnlyOutput:
        """The prompts with the sentence behind them, `(B, T + new)`; its first token is certain."""
        answer = torch.tensor(self._ids[:max_new_tokens], device=input_ids.device, dtype=input_ids.dtype)
        first = torch.full((len(input_ids), self._vocabulary), -1e4, device=input_ids.device)  # (B, V)
        first[:, self._ids[0]] = 0.0
        sequences = torch.cat([input_ids, answer.expand(len(input_ids), -1)], dim=1)
        return GenerateDecoderOnlyOutput(
            sequences=sequences, logits=(first,) if options.get("output_logits") else None
        )


def without_adapters(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which a `PeftModel` computes as its base model does; other models are that already."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def none_flagged(input_ids: Tensor, attention_mask: Tensor) -> list[bool]:
    """Decides that every request is harmless."""
    return [False] * len(input_ids)
