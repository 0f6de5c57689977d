"""Does the export answer as the adapter does? Logits of both on prompts of the shipped set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neurontune_peft.export.change import Change
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.lora import Factors
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.batches import prompt_ids
from neurontune_peft.sites.find import auto_class
from neurontune_peft.tuner import NeuronTuneModel

# `ours`: what two orders of summation of a deep model in float32 differ by, relative to the largest logit.
CLOSE = 1e-4
LONGEST = 96


@dataclass(frozen=True)
class Agreement:
    """
    How far the logits of an export are from those of the adapter.

    Args:
        largest (`float`): The largest difference.
        relative (`float`): The same divided by the largest logit.
        tokens (`int`): Positions compared.
        greedy (`int`): Of these, where both name the same next token.
    """

    largest: float
    relative: float
    tokens: int
    greedy: int

    def as_dict(self) -> dict[str, float]:
        """The fields as JSON values."""
        return {
            "largest": self.largest,
            "relative": self.relative,
            "tokens": self.tokens,
            "same_greedy_token": self.greedy,
        }


def sample_requests() -> list[str]:
    """A few requests of every kind from the shipped prompt set's test split."""
    prompts = PromptSet.load()
    harmful = prompts.select(kind="harmful", split="test")[:2]
    family = prompts.held_out_families[0]
    attacked = prompts.attacked(harmful, family=family, split="test")[:2]
    others = [*prompts.select(kind="benign", split="test")[:2], *prompts.select(kind="borderline", split="test")[:1]]
    return [*(p.prompt for p in harmful), *attacked, *(p.prompt for p in others)]


def sample_rows(checkpoint: Checkpoint) -> list[list[int]]:
    """
    Token ids of the requests inside the model's chat template, at most 96 each and no more than the model takes.

    Without a tokenizer, or with one that does not fit, a fixed walk through the vocabulary.
    """
    config = checkpoint.config.get_text_config()
    vocabulary = int(config.vocab_size)
    longest = min(LONGEST, int(getattr(config, "max_position_embeddings", None) or LONGEST))
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
        rows = [ids[:longest] for ids in prompt_ids(tokenizer, sample_requests())]
    except (OSError, ValueError):
        rows = []
    if not rows or max(max(row, default=vocabulary) for row in rows) >= vocabulary:
        rows = [[(7 + 31 * i * (row + 1)) % vocabulary for i in range(min(24, longest))] for row in range(4)]
    return rows


def fits_in_memory(checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether the model can be loaded twice over beside what runs already."""
    needed = sum(parameter.numel() for parameter in checkpoint.model.parameters()) * dtype.itemsize
    return 2.2 * needed < psutil.virtual_memory().available


def load_model(checkpoint: Checkpoint, dtype: torch.dtype | Literal["auto"], *, directory: Path | None = None) -> Any:
    """Load the base model, or the one in another directory, on the CPU in evaluation mode."""
    where = directory or checkpoint.directory
    return auto_class(checkpoint.config).from_pretrained(where, dtype=dtype).eval()


def logits_of(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each row, `(T, V)`, one row at a time, so that no padding plays in."""
    with torch.no_grad():  # some libraries decompress their weights in the first pass, which inference mode forbids
        return [model(input_ids=torch.tensor([row])).logits[0] for row in rows]


@contextmanager
def attached(model: PreTrainedModel, adapter: str | os.PathLike[str], change: Change) -> Iterator[PeftModel]:
    """
    Attach the adapter that is exported with the same dials, and take it off again.

    Args:
        model ([`~transformers.PreTrainedModel`]): The base model.
        adapter (`str` or `os.PathLike`): Directory or Hub name.
        change ([`Change`]): Says how the dials stand.
    """
    tuned = PeftModel.from_pretrained(model, str(adapter))
    tuner = cast(NeuronTuneModel, tuned.base_model)
    try:
        if tuned.peft_config["default"].modulation == "dynamic":
            tuner.set_modulation("static")
        tuner.set_strength(change.strength)
        for role, count in change.counts.items():
            tuner.set_neuron_counts(None, **{role: count})
        yield tuned.eval()
    finally:
        tuner.unload()


@contextmanager
def with_factors(model: nn.Module, factors: Mapping[str, Factors]) -> Iterator[nn.Module]:
    """Add `B A` to the weights, as an engine does that reads the factors from a file; taken back bit for bit."""
    before: dict[str, Tensor] = {}
    try:
        for site, pair in factors.items():
            module: Any = model.get_submodule(site)
            before[site] = module.weight.data.clone()
            change = pair.b.float() @ pair.a.float()
            module.weight.data += (change.T if isinstance(module, Conv1D) else change).to(module.weight)
        yield model
    finally:
        for site, weight in before.items():
            changed: Any = model.get_submodule(site)
            changed.weight.data = weight


def compare(found: Sequence[Tensor], wanted: Sequence[Tensor], *, limit: float, what: str) -> Agreement:
    """
    Compare logits.

    Args:
        found (`Sequence[torch.Tensor]`): Of the export, `(T, V)` each.
        wanted (`Sequence[torch.Tensor]`): Of the adapter.
        limit (`float`): The largest difference allowed, relative to the largest logit; 0 asks for the same bits.
        what (`str`): The export, for the message.

    Raises:
        ValueError: When they differ by more.
    """
    pairs = list(zip(found, wanted, strict=True))
    largest = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    scale = max(float(b.float().abs().max()) for b in wanted)
    agreement = Agreement(
        largest=largest,
        relative=largest / max(scale, 1e-30),
        tokens=sum(a.shape[0] for a in found),
        greedy=sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs),
    )
    if not agreement.relative <= limit:  # also when it is NaN
        raise ValueError(
            f"got logits of the {what} that differ from the adapter's by {agreement.relative:.1e} of the largest; "
            f"expected at most {limit:.1e}; nothing was written; try --to merged, or report this as a defect"
        )
    return agreement
