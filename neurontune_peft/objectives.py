"""What is a neuron good for? Objectives: callables `(model, batch) -> Tensor[B]`, one number for each example.

Every objective calls the model once, is differentiable (twice, too), computes in float32 whatever the model's dtype,
and gives each example a number that does not depend on the other rows, nor on the side of the padding. An objective's
`rows_per_example` tells how many rows of the model's input belong to one example of the batch: rows
`b * rows_per_example` to `(b + 1) * rows_per_example - 1` are those of example `b`. Whoever hooks a module and holds
one value for each example repeats it with `values.repeat_interleave(objective.rows_per_example, dim=0)`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


class TokenBatch(Protocol):
    """Rows of token ids: a prompt, then its response; `(B, T)` each, padded on either side."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, int64."""

    @property
    def attention_mask(self) -> Tensor:
        """1 at tokens, 0 at padding."""

    @property
    def response_mask(self) -> Tensor:
        """True at the tokens of the response."""


class Objective(Protocol):
    """A callable from a model and a batch to one number for each example."""

    @property
    def rows_per_example(self) -> int:
        """Rows of the model's input for each example of the batch."""

    def __call__(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Returns the numbers, `(B,)`, float32."""


@dataclass(frozen=True)
class TargetLogProb:
    """
    Mean log-probability of the response tokens, in nats; `target_log_prob` is the one instance (ours).

    Args:
        rows_per_example (`int`, *optional*, defaults to `1`): Rows of the model's input for each example.
    """

    rows_per_example: int = 1

    def __call__(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """
        Args:
            model (`nn.Module`): A causal language model.
            batch (`TokenBatch`): Prompts with responses, `(B, T)`.

        Returns:
            `Tensor`: `(B,)`, float32; 0 for a row without a response.
        """
        logits = response_logits(model, batch)  # (N, V)
        log_probs = -F.cross_entropy(logits.float(), batch.input_ids[_predicted(batch)], reduction="none")  # (N,)
        return mean_over_response(log_probs, batch)


target_log_prob = TargetLogProb()


@dataclass(frozen=True)
class RefusalMargin:
    """
    Refusal margin: `log p(refusal | prompt) - log p(compliance | prompt)` in nats, each log-probability averaged over
    the tokens of an opening and then over the openings (re-implementation of the idea; the averages are ours).

    All openings of a batch are scored in one forward pass of `B * P` rows, `P` openings in all, refusals first: row
    `b * P + p` holds prompt `b` and opening `p`, padded on the right.

    Args:
        refusal_ids (`Sequence[Sequence[int]]`): Token ids of openings that refuse.
        compliance_ids (`Sequence[Sequence[int]]`): Token ids of openings that comply.

    Raises:
        ValueError: one of the two is empty or holds an opening without tokens.
    """

    refusal_ids: tuple[tuple[int, ...], ...]
    compliance_ids: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for name in ("refusal_ids", "compliance_ids"):
            openings = tuple(tuple(int(i) for i in ids) for ids in getattr(self, name))
            if not openings or not all(openings):
                raise ValueError(
                    f"got {name} {openings}; expected at least one opening and at least one token in each; tokenise"
                    " the openings without special tokens"
                )
            object.__setattr__(self, name, openings)

    @classmethod
    def from_texts(
        cls, tokenizer: PreTrainedTokenizerBase, *, refusal: Sequence[str], compliance: Sequence[str]
    ) -> "RefusalMargin":
        """
        Tokenise openings, without special tokens.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
            refusal (`Sequence[str]`): Openings that refuse.
            compliance (`Sequence[str]`): Openings that comply.

        Returns:
            `RefusalMargin`: The objective.
        """
        ids = [
            tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
            for texts in (refusal, compliance)
        ]
        return cls(ids[0], ids[1])

    @property
    def rows_per_example(self) -> int:
        """`int`: Number of openings, refusing and complying together."""
        return len(self.refusal_ids) + len(self.compliance_ids)

    def __call__(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """
        Args:
            model (`nn.Module`): A causal language model.
            batch (`TokenBatch`): Prompts without responses, `(B, T)`.

        Returns:
            `Tensor`: `(B,)`, float32.

        Raises:
            ValueError: the batch holds responses.
        """
        if bool(batch.response_mask.any()):
            raise ValueError(
                "got a batch with responses; expected prompts only, as the openings follow them; encode without "
                "responses"
            )
        rows = _append(batch, self.refusal_ids + self.compliance_ids)
        log_probs = target_log_prob(model, rows).view(-1, self.rows_per_example)  # (B, P)
        refusals = len(self.refusal_ids)
        return log_probs[:, :refusals].mean(dim=1) - log_probs[:, refusals:].mean(dim=1)


def kl_to_base(model: nn.Module, batch: TokenBatch, base_logits: Tensor) -> Tensor:
    """
    `KL(base || tuned)` of the next-token distributions, averaged over the response tokens, in nats.

    Args:
        model (`nn.Module`): The tuned model.
        batch (`TokenBatch`): Prompts with responses, `(B, T)`.
        base_logits (`Tensor`): What `response_logits(base, batch)` gave, `(N, V)`.

    Returns:
        `Tensor`: `(B,)`, float32, each at least 0 up to rounding.
    """
    return mean_over_response(kl_of_logits(base_logits, response_logits(model, batch)), batch)


def kl_of_logits(base_logits: Tensor, logits: Tensor) -> Tensor:
    """
    `KL(base || tuned)` of next-token distributions, in nats.

    Args:
        base_logits (`Tensor`): Logits of the base model, `(N, V)`.
        logits (`Tensor`): Logits of the tuned model, `(N, V)`.

    Returns:
        `Tensor`: `(N,)`, float32.
    """
    base = F.log_softmax(base_logits.float(), dim=-1)  # (N, V)
    tuned = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(tuned, base, reduction="none", log_target=True).sum(dim=-1)


def response_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """
    Logits at the positions that predict the response tokens, from one call of the model.

    Args:
        model (`nn.Module`): A causal language model.
        batch (`TokenBatch`): Prompts with responses, `(B, T)`.

    Returns:
        `Tensor`: `(N, V)` in the model's dtype, row after row of the batch; `N` response tokens in all.
    """
    predicts = _predicted(batch)[:, 1:]  # (B, T - 1), True where the next token belongs to the response
    if predicts.shape[1] == 0 or not bool(predicts.any()):
        raise ValueError("got a batch without responses; expected at least one response; encode with responses")
    first = int(predicts.any(dim=0).int().argmax())  # logits before it are not needed
    options = call_options(model, batch, logits_to_keep=batch.input_ids.shape[1] - first)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options).logits
    wanted = predicts[:, first:]  # (B, K)
    return logits[:, -wanted.shape[1] - 1 : -1][wanted]


def call_options(model: nn.Module, batch: TokenBatch, *, logits_to_keep: int) -> dict[str, Any]:
    """
    Arguments beside the ids and their mask with which a model is called, as far as it takes them.

    Args:
        model (`nn.Module`): A causal language model.
        batch (`TokenBatch`): The rows, `(B, T)`.
        logits_to_keep (`int`): Number of last positions for which logits are needed.

    Returns:
        `dict[str, Any]`: Keyword arguments.
    """
    accepted = _forward_parameters(model)
    options: dict[str, Any] = {}
    if "position_ids" in accepted:  # a row's positions must not depend on padding to its left
        options["position_ids"] = (batch.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        options["use_cache"] = False
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = logits_to_keep
    return options


def mean_over_response(values: Tensor, batch: TokenBatch) -> Tensor:
    """
    Average values of response tokens within each row.

    Args:
        values (`Tensor`): One value for each response token, row after row, `(N,)`.
        batch (`TokenBatch`): The batch they belong to, `(B, T)`.

    Returns:
        `Tensor`: `(B,)`; 0 for a row without a response.
    """
    mask = _predicted(batch)
    # masked_scatter and a sum over each row instead of index_add, whose order of additions varies on GPUs
    spread = torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)  # (B, T)
    return spread.sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _predicted(batch: TokenBatch) -> Tensor:
    """Response tokens that a token stands before, `(B, T)`: a first token is predicted by nothing."""
    real = batch.attention_mask.bool()
    preceded = torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], dim=1)
    return batch.response_mask & real & preceded


def _forward_parameters(model: nn.Module) -> set[str]:
    """Names of the arguments that the causal language model takes, below the wrappers of PEFT and torch.compile."""
    inner: Any = getattr(model, "_orig_mod", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return set(inspect.signature(inner.forward).parameters)


@dataclass(frozen=True)
class _Rows:
    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def _append(batch: TokenBatch, openings: Sequence[Sequence[int]]) -> _Rows:
    """Every prompt with every opening behind it, `(B * P, T + L)`, padded on the right."""
    device = batch.input_ids.device
    mask = batch.attention_mask.bool()
    lengths = mask.sum(dim=1)  # (B,)
    if bool((lengths == 0).any()):
        raise ValueError("got a row without tokens; expected a prompt in each; remove empty rows")
    width, longest = int(lengths.max()), max(len(ids) for ids in openings)
    # Right padding gives every model the positions it expects, also one that takes no position_ids.
    order = torch.argsort((~mask).int(), dim=1, stable=True)[:, :width]  # (B, W), real tokens first
    prompts = batch.input_ids.gather(1, order).repeat_interleave(len(openings), dim=0)  # (B * P, W)
    lengths = lengths.repeat_interleave(len(openings))[:, None]  # (B * P, 1)
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in openings], device=device)  # (P, L)
    sizes = torch.tensor([len(ids) for ids in openings], device=device)
    padded, sizes = padded.repeat(len(mask), 1), sizes.repeat(len(mask))[:, None]  # (B * P, L), (B * P, 1)

    ids = torch.cat([prompts, padded], dim=1)  # (B * P, W + L), openings not in place yet
    ids.scatter_(1, lengths + torch.arange(longest, device=device), padded)
    positions = torch.arange(width + longest, device=device)
    real = positions < lengths + sizes
    return _Rows(ids.masked_fill(~real, 0), real.long(), real & (positions >= lengths))
