"""From an adapter to files that another program serves: written beside the target, read back, checked, then named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from neurontune_peft.export.change import Change, change_at
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.engines import lora_notes
from neurontune_peft.export.gguf import write_gguf
from neurontune_peft.export.ia3 import write_ia3
from neurontune_peft.export.lora import check_convertible, write_lora
from neurontune_peft.export.merged import PLAN, planned_edits, write_merged
from neurontune_peft.export.ollama import write_ollama
from neurontune_peft.export.output import exclusive, write_record
from neurontune_peft.export.peft_files import base_name
from neurontune_peft.export.quantized import is_quantized, method_of
from neurontune_peft.export.verify import Check, verify
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.fingerprint import fingerprint

Format = Literal["lora", "ia3", "merged", "gguf", "ollama"]
_RECORD_VERSION = 1


@dataclass(frozen=True)
class Export:
    """
    What was written.

    Args:
        directory (`Path`): Where it stands.
        to (`str`): Its format.
        strengths (`tuple[float, ...]`): One, or one per subdirectory `strength-…`.
        checks (`tuple[Check, ...]`): What was found when it was read back, per strength.
        notes (`tuple[str, ...]`): How to serve it, and what is lost.
    """

    directory: Path
    to: Format
    strengths: tuple[float, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """Everything that one strength's export is made of."""

    adapter: str | os.PathLike[str]
    file: AdapterFile
    checkpoint: Checkpoint
    to: Format
    dtype: torch.dtype
    base: str | None
    check: str


def export_adapter(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: Format,
    model: str | os.PathLike[str] | None = None,
    strengths: Sequence[float] | None = None,
    counts: Mapping[str, int | float] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    base: str | None = None,
    check: Literal["auto", "logits", "weights"] = "auto",
    force: bool = False,
) -> Export:
    """
    Write an adapter in the format of another method or program, exactly, or not at all.

    What was written is read back and compared with the adapter, weight by weight and (where the model fits into
    memory) logit by logit on requests of the shipped prompt set. Only then does the directory get its name.

    Args:
        adapter (`str` or `os.PathLike`): Directory or Hub name of the adapter.
        output (`str` or `os.PathLike`): New directory.
        to (`str`): `"lora"`, `"ia3"`, `"merged"`, `"gguf"` (a LoRA for llama.cpp) or `"ollama"`.
        model (`str` or `os.PathLike`, *optional*): The base model; by default the one that the adapter names.
        strengths (`Sequence[float]`, *optional*): One writes to `output`, several to `output/strength-…`; 1 by
            default. Required for adapters with dynamic modulation, which are static once exported.
        counts (`Mapping[str, int | float]`, *optional*): Role to count threshold, or to a share of all neurons.
        dtype (`str`, *optional*, defaults to `"float32"`): Of LoRA factors. Merged weights keep their own.
        base (`str`, *optional*): GGUF file of the base model (for `"gguf"` and `"ollama"`), or a name of Ollama's.
        check (`str`, *optional*, defaults to `"auto"`): `"logits"`, `"weights"`, or by the memory that is free.
        force (`bool`, *optional*, defaults to `False`): Replace an older export.

    Returns:
        [`Export`]: What was written.

    Raises:
        ValueError: When the adapter cannot be said in this format, something does not fit, or the output cannot be
            written. Nothing is left then that looks like an export.

    Example:

        ```py
        >>> from neurontune_peft import export_adapter

        >>> export_adapter("adapter", "adapter-lora", to="lora", strengths=[0.5, 1.0])
        ```
    """
    job, changes = _prepared(
        adapter, to, model=model, strengths=strengths, counts=counts, dtype=dtype, base=base, check=check
    )
    notes = list(_losses(job))
    checks = []
    names = [name_of(change.strength) for change in changes]
    with exclusive(Path(output), force=force, keep=to == "merged") as staging:
        for name, change in zip(names, changes, strict=True):
            directory = staging / name if len(changes) > 1 else staging
            directory.mkdir(exist_ok=True)
            details, said = _write(job, change, directory)
            notes += [line for line in said if line not in notes]
            checks.append(verify(directory, change, job.checkpoint, job.adapter, job.to, job.dtype, job.check))
            write_record(directory, _record(job, change, details, checks[-1]))
        if len(changes) > 1:
            write_record(staging, {"format_version": _RECORD_VERSION, "to": to, "strengths": names})
        for plan in staging.rglob(PLAN):
            plan.unlink()
    if to == "lora":
        notes += lora_notes(int(details["rank"]), details["modules"], names, renamed=_renamed(job))
    strengths_written = tuple(change.strength for change in changes)
    return Export(Path(output), to, strengths_written, tuple(checks), tuple(notes))


def _losses(job: _Job) -> list[str]:
    """What an export cannot take along."""
    if job.file.config.modulation == "static":
        return []
    return [
        "The adapter decides for each request; the export is static and acts on every one, harmless ones too. For its "
        "own behaviour serve it with PEFT and neurontune_peft"
    ]


def name_of(strength: float) -> str:
    """Name of a strength's subdirectory, such as `strength-0.5`."""
    return f"strength-{strength:g}"


def _prepared(
    adapter: str | os.PathLike[str],
    to: Format,
    *,
    model: str | os.PathLike[str] | None,
    strengths: Sequence[float] | None,
    counts: Mapping[str, int | float] | None,
    dtype: str,
    base: str | None,
    check: str,
) -> tuple[_Job, list[Change]]:
    """Check everything that can be known before anything is written."""
    if to not in get_args(Format):
        raise ValueError(f"got to={to!r}; expected one of {list(get_args(Format))}; choose a format")
    if (to == "ollama") != (base is not None) and to != "gguf":
        wanted = "the base model's GGUF file or a name of Ollama's" if to == "ollama" else "none"
        raise ValueError(f"got base={base!r} for {to}; expected {wanted}; correct --base")
    file = AdapterFile.load(adapter)
    given: Sequence[float | None] = [None] if strengths is None else list(strengths)
    if not given or len({name_of(1.0 if s is None else s) for s in given}) < len(given):
        raise ValueError(f"got strengths {list(given)}; expected different ones, at least one; correct --strength")
    changes = [change_at(file, strength=strength, counts=counts) for strength in given]
    named = model if model is not None else file.config.base_model_name_or_path
    if named is None:
        raise ValueError("got an adapter that names no base model; expected one; name it with --model")
    checkpoint = Checkpoint.open(named)
    _warn_of_other_base(file, checkpoint)
    if to != "merged" and (held := [site for site in changes[0].sites if is_quantized(checkpoint, site)]):
        raise ValueError(
            f"got '{held[0]}' quantised by {method_of(checkpoint)}; expected floating-point weights, of which {to} is "
            "computed; name the unquantised base model with --model, or use --to merged"
        )
    if to == "merged":
        planned_edits(changes[0], checkpoint)
    elif to != "ia3":
        check_convertible(changes[0], checkpoint)
    return _Job(adapter, file, checkpoint, to, getattr(torch, dtype), base, check), changes


def _write(job: _Job, change: Change, directory: Path) -> tuple[dict[str, Any], list[str]]:
    named = base_name(job.file.config.base_model_name_or_path)
    if job.to == "lora":
        return write_lora(change, job.checkpoint, directory, dtype=job.dtype, base=named), []
    if job.to == "ia3":
        return write_ia3(change, job.checkpoint, directory, base=named), [
            "PEFT: PeftModel.from_pretrained(base_model, OUT); serving engines take no IA3"
        ]
    if job.to == "merged":
        return write_merged(change, job.checkpoint, directory), [
            "Any engine that serves the base model serves OUT; the strength is fixed"
        ]
    if job.to == "gguf":
        base = None if job.base is None else Path(job.base)
        return write_gguf(change, job.checkpoint, directory, dtype=job.dtype, base=base), [
            "llama.cpp: llama-server -m BASE.gguf --lora OUT/adapter.gguf; a request sets its strength with "
            '"lora": [{"id": 0, "scale": 0.5}]'
        ]
    return write_ollama(change, job.checkpoint, directory, dtype=job.dtype, base=str(job.base))


def _record(job: _Job, change: Change, details: Mapping[str, object], check: Check) -> dict[str, Any]:
    """What is written beside the export: no path, no user, nothing that the same command would not write again."""
    config = job.file.config
    return {
        "format_version": _RECORD_VERSION,
        "to": job.to,
        "strength": change.strength,
        "counts": dict(change.counts),
        "made_static": config.modulation == "dynamic",
        "base_model": base_name(config.base_model_name_or_path),
        "base_model_fingerprint": config.base_model_fingerprint,
        "details": dict(details),
        "check": check.as_dict(),
    }


def _renamed(job: _Job) -> bool:
    sites = job.file.neurons.sites
    return any(job.checkpoint.weights_of(site).keys != (f"{site}.weight",) for site in sites)


def _warn_of_other_base(file: AdapterFile, checkpoint: Checkpoint) -> None:
    """Warn, as loading does, when the adapter was made for other weights."""
    if any(is_quantized(checkpoint, site) for site in file.neurons.sites):
        return  # the adapter may well have been made for the same weights before they were quantised
    weights = [checkpoint.weights_of(site) for site in file.neurons.sites]
    if any(len(found.keys) > 1 for found in weights) or file.config.base_model_fingerprint is None:
        return  # experts that are stored one by one have no weight that could be sampled without joining them
    found = fingerprint({w.site: checkpoint.read(w.keys[0]) for w in weights})
    if found != file.config.base_model_fingerprint:
        warnings.warn(
            f"got base model '{checkpoint.directory.name}' (weights {found:.12}); expected the one that this adapter "
            f"was made for (weights {file.config.base_model_fingerprint:.12}); name it with --model",
            stacklevel=4,
        )
