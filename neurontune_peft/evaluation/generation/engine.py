"""
Answers to many requests: a batch whose finished rows leave and are replaced, on top of `generate`.

`generate` is called for stretches of tokens with the keys and values of the stretch before, so that a model's own
generation settings, its adapters and their triggers act as in one plain call. Between two stretches finished rows
leave, and others, whose prompts were read in a batch of their own, join. Rows that are next to each other in length
are answered together, longest first, so that a batch that does not fit fails at once and not at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from neurontune_peft.evaluation.generation.rows import Rows
from neurontune_peft.evaluation.generation.sampling import Drawing, Draws
from neurontune_peft.prompts.answers import evaluating
from neurontune_peft.prompts.batches import pad_rows

Answered = dict[int, list[int]]  # place among the requests to the answer's token ids
# Settings of `generate` that count from the start of an answer: they would start anew with each stretch.
FROM_THE_START = (
    "min_length",
    "min_new_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "watermarking_config",
    "stop_strings",
    "prompt_lookup_num_tokens",
)


@dataclass(frozen=True)
class Engine:
    """
    Answers requests that are given as token ids.

    Args:
        model (`nn.Module`): A causal language model with `generate`, or a `PeftModel` of one.
        options (`dict[str, Any]`): Options of `generate`; `pad_token_id` at least.
        max_new_tokens (`int`): Most tokens of an answer.
        batch_size (`int`): Rows at once.
        draws ([`Draws`], *optional*): Draw the tokens; the likeliest ones without.
        refill (`bool`, *optional*, defaults to `True`): Replace finished rows; else one batch follows the other.
    """

    model: nn.Module
    options: dict[str, Any]
    max_new_tokens: int
    batch_size: int
    draws: Draws | None = None
    refill: bool = True
    ends: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        config: Any = self.model.generation_config
        end = self.options.get("eos_token_id", config.eos_token_id)
        ends = [] if end is None else end if isinstance(end, list) else [end]
        object.__setattr__(self, "ends", frozenset(int(token) for token in ends))

    def answers(self, requests: Sequence[Sequence[int]]) -> Iterator[Answered]:
        """
        Answer requests.

        Args:
            requests (`Sequence[Sequence[int]]`): Token ids of each prompt.

        Yields:
            `dict[int, list[int]]`: Place among the requests to the answer's token ids, as they are finished.
        """
        waiting = sorted(range(len(requests)), key=lambda place: (len(requests[place]), place))
        with evaluating(self.model), torch.no_grad():
            rows = None
            if self._in_stretches and len(requests) > 1:
                first = waiting[-self.batch_size :][::-1]
                rows = self._opened(requests, first)
            if rows is None or not rows.can_change:
                yield from self._in_batches(requests, waiting)
            else:
                del waiting[-self.batch_size :]
                yield from self._refilled(requests, rows, waiting)

    @property
    def _in_stretches(self) -> bool:
        """Whether answers may be made in several calls of `generate`."""
        config: Any = self.model.generation_config
        plain = not any(getattr(config, name, None) for name in FROM_THE_START)  # versions differ in what they know
        return self.refill and self.max_new_tokens > 1 and plain

    def _in_batches(self, requests: Sequence[Sequence[int]], waiting: list[int]) -> Iterator[Answered]:
        """One batch after the other, each until its last row is done."""
        order = waiting[::-1]
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            ids, mask = self._padded(requests, places)
            made = self._generate(requests, places, [0] * len(places), ids, mask, self.max_new_tokens)
            new = made.sequences[:, ids.shape[1] :].tolist()
            yield {place: self._cut(tokens) for place, tokens in zip(places, new, strict=True)}

    def _refilled(self, requests: Sequence[Sequence[int]], rows: Rows, waiting: list[int]) -> Iterator[Answered]:
        """Finished rows leave after each stretch; when a quarter of the places is free, others join."""
        quarter = max(1, self.batch_size // 4)
        while True:
            done = [row for row in range(len(rows.places)) if self._is_done(rows, row)]
            if done:
                yield {rows.places[row]: self._cut(rows.answer(row)) for row in done}
                rows.keep([row for row in range(len(rows.places)) if row not in set(done)])
            free = self.batch_size - len(rows.places)
            if waiting and (free >= quarter or not rows.places):
                new = self._opened(requests, waiting[-free:][::-1])
                del waiting[-free:]
                if rows.places:
                    rows.join(new, pad_id=self.options["pad_token_id"])
                else:
                    rows = new
            elif not rows.places:
                return
            else:
                self._go_on(requests, rows, stop=quarter if waiting else max(1, len(rows.places) // 4))

    def _opened(self, requests: Sequence[Sequence[int]], places: list[int]) -> Rows:
        """Read prompts and answer one token."""
        ids, mask = self._padded(requests, places)
        produced = [0] * len(places)
        made = self._generate(requests, places, produced, ids, mask, 1)
        return Rows(
            places=list(places),
            produced=[1] * len(places),
            ids=made.sequences,
            mask=torch.cat([mask, mask.new_ones(len(places), 1)], dim=1),
            cache=made.get("past_key_values"),
        )

    def _go_on(self, requests: Sequence[Sequence[int]], rows: Rows, *, stop: int) -> None:
        """Answer further tokens until `stop` rows are done, or one has all the tokens it may have."""
        length = self.max_new_tokens - max(rows.produced)
        width = rows.ids.shape[1]
        made = self._generate(
            requests,
            rows.places,
            rows.produced,
            rows.ids,
            rows.mask,
            length,
            past_key_values=rows.cache,
            stopping_criteria=StoppingCriteriaList([EnoughDone(self.ends, stop, width)]),
        )
        steps = made.sequences.shape[1] - width
        rows.ids, rows.cache = made.sequences, made.past_key_values
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(rows.places), steps)], dim=1)
        rows.produced = [count + steps for count in rows.produced]

    def _generate(
        self,
        requests: Sequence[Sequence[int]],
        places: Sequence[int],
        produced: Sequence[int],
        ids: Tensor,
        mask: Tensor,
        count: int,
        **further: Any,
    ) -> Any:
        if self.draws is not None:
            rows = [self.draws.uniforms(requests[place], self.max_new_tokens) for place in places]
            uniforms = torch.tensor(rows, dtype=torch.float64, device=ids.device)  # (B, N)
            drawing = Drawing(self.draws.temperature, uniforms, produced, ids.shape[1])
            further["logits_processor"] = LogitsProcessorList([drawing])
        return self.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            return_dict_in_generate=True,
            **self.options,
            **further,
        )

    def _padded(self, requests: Sequence[Sequence[int]], places: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = [list(requests[place]) for place in places]
        pad_id = self.options["pad_token_id"]
        batch = pad_rows(chosen, [[] for _ in chosen], pad_id=pad_id, padding_side="left")
        batch = batch.to(next(self.model.parameters()).device)
        return batch.input_ids, batch.attention_mask

    def _is_done(self, rows: Rows, row: int) -> bool:
        return rows.produced[row] >= self.max_new_tokens or not self.ends.isdisjoint(rows.answer(row))

    def _cut(self, tokens: list[int]) -> list[int]:
        """An answer up to its end token; rows that wait for others are filled up behind it."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]


class EnoughDone(StoppingCriteria):
    """
    Ends a stretch when some of its rows have ended their answers.

    Args:
        ends (`frozenset[int]`): Ids that end an answer.
        enough (`int`): How many rows.
        width (`int`): Tokens per row before the stretch.
    """

    def __init__(self, ends: frozenset[int], enough: int, width: int) -> None:
        self.ends, self.enough, self.width = sorted(ends), enough, width

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """
        Returns:
            `torch.Tensor`: True for all rows or for none, `(B,)`.
        """
        new = input_ids[:, self.width :]
        ended = torch.isin(new, torch.tensor(self.ends, dtype=torch.long, device=new.device)).any(dim=1)  # (B,)
        return (ended.sum() >= self.enough).expand(len(input_ids))
