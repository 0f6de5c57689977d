"""What if bits of the adapter file flip?"""

from __future__ import annotations

import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from transformers.utils import logging

from neurontune_peft.evaluation.compare.points import measured_part
from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject
from neurontune_peft.evaluation.result import Rate
from neurontune_peft.objectives import call_options
from neurontune_peft.prompts import encode
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.tuner.checksum import config_checksum
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.names import DELTA, INDEX, RANK, TRIGGER

PROBES = 8  # requests of each kind whose next token is compared


def flipped(subject: Subject, *, flips: int) -> Iterator[Row]:
    """
    Flip one random bit of the saved adapter at a time: of its tensors with their metadata, and of its configuration
    with its presets.

    A flip is caught when loading refuses the file. It is harmless when neither a setting of the adapter nor a number
    differs, or when the answers to some test requests, attacked, harmful and harmless, begin with the same tokens as
    before.

    Args:
        subject ([`Subject`]): The model; its numbers come back bit for bit.
        flips (`int`): How many files of each kind are tried.
    """
    if any(layer.merged for layer in subject.tuner.neuron_layers(subject.adapter_name).values()):
        raise NotTestedError("the adapter is merged")
    texts = _probes(subject)
    with tempfile.TemporaryDirectory() as directory:
        adapter = _saved(subject, Path(directory))
        intact = Intact(AdapterFile.load(adapter), texts, _first_tokens(subject, texts))
        try:
            for name, file in (("", SAFETENSORS_WEIGHTS_NAME), (", configuration", CONFIG_NAME)):
                yield _row(f"bit flips{name}", file, _outcomes(subject, adapter / file, intact, flips))
        finally:
            _load(subject, intact.file)


@dataclass(frozen=True)
class Intact:
    """
    The adapter before any bit was flipped.

    Args:
        file ([`AdapterFile`]): What is in its files.
        texts (`list[str]`): Requests.
        tokens (`torch.Tensor`): First tokens of the answers to them, `(n,)`.
    """

    file: AdapterFile
    texts: list[str]
    tokens: Tensor


def _row(name: str, file: str, outcomes: Counter[str]) -> Row:
    rate = Rate(outcomes["changed"], outcomes.total())
    return Row(
        name,
        f"{outcomes.total()} files with one random bit flipped: {file}",
        "files that change answers and are not caught",
        0.0,
        0.0,
        rate.rate,
        rate.low,
        rate.high,
        held=outcomes["changed"] == 0,
        note=", ".join(f"{outcomes[kind]} {kind}" for kind in ("caught", "harmless", "changed")),
    )


def _outcomes(subject: Subject, path: Path, intact: Intact, flips: int) -> Counter[str]:
    """`caught`, `harmless` or `changed` to how often; the file is whole again afterwards."""
    drawn, whole = random.Random(f"{subject.seed}-flips-{path.name}"), path.read_bytes()
    outcomes: Counter[str] = Counter()
    try:
        for _ in logging.tqdm(range(flips), desc=f"stress: flips in {path.name}", unit="file"):
            place = drawn.randrange(8 * len(whole))
            broken = bytearray(whole)
            broken[place // 8] ^= 1 << place % 8
            path.write_bytes(broken)
            outcomes[_outcome(subject, path.parent, intact)] += 1
    finally:
        path.write_bytes(whole)
    return outcomes


def _saved(subject: Subject, directory: Path) -> Path:
    subject.model.save_pretrained(str(directory), selected_adapters=[subject.adapter_name])
    own = directory / subject.adapter_name  # PEFT puts adapters of other names than "default" into a folder
    return own if own.is_dir() else directory


def _outcome(subject: Subject, adapter: Path, intact: Intact) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of a field whose name was flipped
            file = AdapterFile.load(adapter)
    except (ValueError, KeyError, TypeError, RecursionError):  # the others are PEFT's and Python's own refusals
        return "caught"
    if config_checksum(file.config.to_dict()) != config_checksum(intact.file.config.to_dict()):
        return "changed"
    pairs = zip(_numbers(intact.file), _numbers(file), strict=True)
    if all(torch.equal(first, second) for first, second in pairs):
        return "harmless"
    _load(subject, file)
    return "harmless" if torch.equal(_first_tokens(subject, intact.texts), intact.tokens) else "changed"


def _load(subject: Subject, file: AdapterFile) -> None:
    """Take the numbers of a file and leave the configuration as it is."""
    held: list[tuple[str, Any]] = [(DELTA, file.deltas), (INDEX, file.neurons.indices), (RANK, file.neurons.ranks)]
    held += [(TRIGGER, file.triggers)] if file.triggers else []
    name = subject.adapter_name
    with torch.no_grad():
        for site, layer in subject.tuner.neuron_layers(name).items():
            for role, part in layer.roles[name].items():
                for attribute, values in held:
                    tensor = getattr(layer, attribute)[name]
                    tensor[part] = values[role][site].to(tensor)
                layer.turn_dial(name, role)  # ranks decide which neurons a count keeps


def _numbers(file: AdapterFile) -> list[Tensor]:
    parts = (file.deltas, file.neurons.indices, file.neurons.ranks, file.triggers)
    return list(chain.from_iterable(sites.values() for roles in parts for sites in roles.values()))


def _probes(subject: Subject) -> list[str]:
    part = measured_part(subject.prompts, PROBES)
    texts = [prompt.prompt for prompt in part.prompts]
    harmful = part.select(kind="harmful")
    for family in part.families(split="test"):
        targets = part.attackable(harmful, family=family, split="test")
        texts += part.attacked(targets, family=family, split="test")[:PROBES]
    return texts


@torch.no_grad()
def _first_tokens(subject: Subject, texts: list[str]) -> Tensor:
    """The most likely first token of each answer, `(n,)`."""
    device = next(subject.base.parameters()).device
    found = []
    with evaluating(subject.model):
        for start in range(0, len(texts), 32):
            part = texts[start : start + 32]
            rows = encode(
                subject.tokenizer,
                part,
                chat_template=subject.chat_template,
                max_length=context_length(subject.base),
                padding_side="left",
            ).to(device)
            options = call_options(subject.model, rows, logits_to_keep=1)
            logits = subject.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, **options).logits
            found.append(logits[:, -1].argmax(dim=-1).cpu())
    return torch.cat(found)
