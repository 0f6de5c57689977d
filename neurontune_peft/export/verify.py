"""Reading an export back and comparing it with the adapter."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers.utils import logging

from neurontune_peft.export.change import Change
from neurontune_peft.export.check import (
    CLOSE,
    Agreement,
    attached,
    compare,
    fits_in_memory,
    load_model,
    logits_of,
    sample_rows,
    with_factors,
)
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.gguf import GGUF_NAME, gguf_names, read_gguf
from neurontune_peft.export.ia3 import check_ia3
from neurontune_peft.export.lora import Factors, check_factors, max_change, read_lora
from neurontune_peft.export.quantized import is_quantized
from neurontune_peft.tuner import NeuronTuneModel

logger = logging.get_logger(__name__)
MERGED = "merged checkpoint"
# `ours`: products of scale factors are rounded to 16 bits, and quantised activations may then take the next step.
# Where an adapter does more than that, at most half of what it does is allowed, so that a merge without effect shows.
QUANTIZED_CLOSE = 0.005


@dataclass(frozen=True)
class Check:
    """
    What was found when an export was read back.

    Args:
        weight_error (`float`): The largest error of a weight, relative to the largest of its module.
        logits ([`Agreement`] or `None`): Against the adapter's; `None` when the model was too large to be loaded.
    """

    weight_error: float
    logits: Agreement | None

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"weight_error": self.weight_error, "logits": None if self.logits is None else self.logits.as_dict()}


def verify(
    directory: Path,
    change: Change,
    checkpoint: Checkpoint,
    adapter: str | os.PathLike[str],
    to: str,
    dtype: torch.dtype,
    check: str,
) -> Check:
    """
    Read an export back and compare it with the adapter.

    Args:
        directory (`Path`): The export.
        change ([`Change`]): What it stands for.
        checkpoint ([`Checkpoint`]): The base model.
        adapter (`str` or `os.PathLike`): The adapter.
        to (`str`): Format of the export.
        dtype (`torch.dtype`): In which factors were written.
        check (`str`): `"logits"`, `"weights"`, or `"auto"`: logits where the model fits into memory.

    Returns:
        [`Check`]: What was found.

    Raises:
        ValueError: When it differs.
    """
    factors, error = _read_back(directory, change, checkpoint, to, dtype)
    if check == "weights" or (check == "auto" and not fits_in_memory(checkpoint, torch.float32)):
        return Check(error, None)
    rows = sample_rows(checkpoint)
    if to == "merged":
        if any(is_quantized(checkpoint, site) for site in change.sites):
            return Check(error, _quantized_agreement(directory, change, checkpoint, adapter, rows, check))
        return Check(error, _merged_agreement(directory, change, checkpoint, adapter, rows))
    model = load_model(checkpoint, torch.float32)
    with attached(model, adapter, change) as tuned:
        wanted = logits_of(tuned, rows)
    if factors is not None:
        with with_factors(model, factors) as changed:
            found = logits_of(changed, rows)
    else:
        found = logits_of(PeftModel.from_pretrained(model, str(directory)).eval(), rows)
    eps = 0.0 if dtype is torch.float32 else 8 * torch.finfo(dtype).eps * max_change(change)
    return Check(error, compare(found, wanted, limit=CLOSE + eps, what=f"{to} export"))


def _read_back(
    directory: Path, change: Change, checkpoint: Checkpoint, to: str, dtype: torch.dtype
) -> tuple[dict[str, Factors] | None, float]:
    """Factors that no library of Python applies, and the error of the weights; shards were read back when written."""
    if to == "merged":
        return None, 0.0
    if to == "ia3":
        return None, check_ia3(directory, change, checkpoint)
    if to == "lora":
        return None, check_factors(read_lora(directory), change, checkpoint, dtype=dtype)
    names = gguf_names(change, checkpoint).tensors
    factors = read_gguf(directory / GGUF_NAME, names)
    return factors, check_factors(factors, change, checkpoint, dtype=dtype)


def _merged_agreement(
    directory: Path,
    change: Change,
    checkpoint: Checkpoint,
    adapter: str | os.PathLike[str],
    rows: list[list[int]],
) -> Agreement:
    """Compare with `merge_and_unload` in the dtype of the checkpoint: the same bits."""
    model = load_model(checkpoint, "auto")
    with attached(model, adapter, change) as tuned:
        cast(NeuronTuneModel, tuned.base_model).merge_adapter()
        wanted = logits_of(tuned, rows)
    del model
    found = logits_of(load_model(checkpoint, "auto", directory=directory), rows)
    return compare(found, wanted, limit=0.0, what=MERGED)


def _quantized_agreement(
    directory: Path,
    change: Change,
    checkpoint: Checkpoint,
    adapter: str | os.PathLike[str],
    rows: list[list[int]],
    check: str,
) -> Agreement | None:
    """
    Compare with the adapter on the quantised model, as merging into that in memory would quantise again.

    Returns:
        [`Agreement`], *optional*: `None` where the model does not run on this machine, unless `check` asks for it.
    """
    try:
        model = load_model(checkpoint, "auto")
        plain = logits_of(model, rows)  # where weights are unpacked in the first pass, modules have none before
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "got base model")  # made for the weights before they were quantised
            with attached(model, adapter, change) as tuned:
                wanted = logits_of(tuned, rows)
        del model
        found = logits_of(load_model(checkpoint, "auto", directory=directory), rows)
    except Exception as error:  # whatever the library that quantised the model raises on this machine
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if check == "logits":
            raise ValueError(
                f"got a quantised model that does not run here ({reason}); expected one that does, to compare logits; "
                "install what it needs, or use --check weights"
            ) from error
        logger.warning("logits not compared: the quantised model does not run here (%s)", reason)
        return None
    pairs = zip(wanted, plain, strict=True)
    effect = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    return compare(found, wanted, limit=max(effect / 2, QUANTIZED_CLOSE), what=MERGED)
