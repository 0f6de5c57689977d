"""The model card: what an adapter does, to what, how well, at what cost, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from huggingface_hub import ModelCard, ModelCardData

from neurontune_peft.hub.evidence import Evidence
from neurontune_peft.hub.results import eval_results
from neurontune_peft.report import compare_markdown, summary
from neurontune_peft.tuner import NeuronTuneConfig
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.saved import snippet

TAGS = ("neurontune", "neurontune_peft", "peft", "safety", "jailbreak", "adapter")
PICTURE = "frontier.png"

_LIMITS = """## Limits and misuse

- What counts as a refusal is decided by the judge named in the tables. A judge of the *format* sees the opening of an
  answer only, so *attack success* there means an answer that does not open with a refusal, and says nothing about what
  the answer is good for.
- The figures hold for prompts like those that were measured. Adaptive attackers, other languages and conversations of
  several turns are not among them unless a table says so.
- It works on the base model named here. Another one gives a warning at load time; do not ignore it.
- It is one layer of defence beside others, no guarantee. Whoever has the weights of a model can take any tuning out.
- A negative strength, or deltas with their signs turned, weaken refusals: that is misuse. Before you load an adapter
  of unknown origin, `neurontune audit user/adapter --model BASE` shows whether it lowers refusals."""


def model_card(
    file: AdapterFile, repo_id: str, evidence: Evidence, *, license: str | None = None, picture: bool = False
) -> ModelCard:
    """
    Write the card of an adapter.

    Args:
        file ([`AdapterFile`]): The adapter.
        repo_id (`str`): Name on the Hub under which it will be found.
        evidence ([`Evidence`]): What was measured, and how the adapter was made.
        license (`str`, *optional*): The Hub's identifier of the licence, such as `"apache-2.0"`.
        picture (`bool`, *optional*, defaults to `False`): `frontier.png` stands beside the card.

    Returns:
        `huggingface_hub.ModelCard`: Text and metadata; huggingface_hub's own parser reads them back.
    """
    sections = [
        f"# {repo_id.split('/')[-1]}",
        _what(file, evidence),
        "## Use",
        snippet(repo_id, str(file.config.base_model_name_or_path)),
        "Without the first line, PEFT says `KeyError: 'NEURONTUNE'`.",
        _contents(file),
        *_effect(evidence),
        *_settings(evidence, picture=picture),
        _LIMITS,
        _license(license),
        _made(file.config, evidence),
    ]
    card = ModelCard(f"---\n{_metadata(file, repo_id, evidence, license).to_yaml()}\n---\n\n" + "\n\n".join(sections))
    card.text = card.text.rstrip() + "\n"
    return card


def _metadata(file: AdapterFile, repo_id: str, evidence: Evidence, license: str | None) -> ModelCardData:
    results = []
    if evidence.before is not None and evidence.after is not None:
        results = eval_results(evidence.before, evidence.after)
    return ModelCardData(
        base_model=file.config.base_model_name_or_path,
        library_name="peft",
        license=license,
        pipeline_tag="text-generation" if file.config.task_type == "CAUSAL_LM" else None,
        tags=[*TAGS, f"base_model:adapter:{file.config.base_model_name_or_path}"],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
        base_model_relation="adapter",
    )


def _what(file: AdapterFile, evidence: Evidence) -> str:
    share = file.neurons.total / max(1, sum(file.neurons.widths.values()))
    when = (
        "for the requests that a trigger on the same neurons takes for harmful; the base model answers all others"
        if file.config.modulation == "dynamic"
        else "for every request"
    )
    outcome = "Its effect was not measured."
    if evidence.before is not None and evidence.after is not None:
        outcome = summary(evidence.before, evidence.after)
    return (
        f"A safety adapter for [{file.config.base_model_name_or_path}]"
        f"(https://huggingface.co/{file.config.base_model_name_or_path}): it scales {file.neurons.total:,} neurons "
        f"({share:.1%} of those at its {len(file.neurons.sites)} sites) {when}. Made with neurontune_peft, after "
        f"[NeuronTune](https://arxiv.org/abs/2508.09473).\n\n{outcome}"
    )


def _contents(file: AdapterFile) -> str:
    rows = ["| role | neurons | sites | lowest scale | median | highest scale |", "|---|---|---|---|---|---|"]
    for role in file.neurons.roles:
        scales = torch.cat([1 + delta.float() for delta in file.deltas[role].values()])
        numbers = " | ".join(f"{float(value):.3f}" for value in (scales.min(), scales.median(), scales.max()))
        rows.append(f"| {inline(role)} | {scales.numel()} | {len(file.deltas[role])} | {numbers} |")
    config = file.config
    decided = ""
    if config.modulation == "dynamic":
        rises = "" if config.trigger_gate == "step" else "up to "
        decided = f" Strength {rises}{config.strength_on:g} for requests that trigger"
        decided += f", {config.strength_off:g} for others."
    return (
        "## What is in it\n\n"
        + "\n".join(rows)
        + f"\n\n{file.size:,} bytes in `adapter_model.safetensors`; a scale of 1 leaves a neuron as it is.{decided} "
        f"Fingerprint of the scaled base weights: `{config.base_model_fingerprint or 'unknown'}`."
    )


def _effect(evidence: Evidence) -> Iterator[str]:
    if evidence.before is None or evidence.after is None:
        return
    tables = compare_markdown(evidence.before, evidence.after).strip()
    yield "## Effect"
    yield "Before: the base model; after: with this adapter. 95 % Wilson intervals."
    yield re.sub(r"(?m)^## ", "### ", tables)


def _settings(evidence: Evidence, *, picture: bool) -> Iterator[str]:
    if evidence.presets or picture:
        yield "## Settings"
    if picture:
        yield f"![Attack success against over-refusal of each setting]({PICTURE})"
    if evidence.presets:
        rows = ["| preset | strength | neurons | threshold |", "|---|---|---|---|"]
        for name, setting in evidence.presets.items():
            counts = ", ".join(f"{inline(role)} {count}" for role, count in (setting.get("counts") or {}).items())
            threshold = "–" if setting.get("threshold") is None else f"{setting['threshold']:.3f}"
            rows.append(f"| {inline(name)} | {setting.get('strength', 1)} | {counts or 'all'} | {threshold} |")
        yield "\n".join(rows)
        yield "`model.set_strength(…)` and `model.set_neuron_counts(…)` turn the dials, without reloading."
    if statement := evidence.certificate.get("statement"):
        yield f"### Certificate\n\n{inline(str(statement), most=2000)}"


def _license(license: str | None) -> str:
    stated = f"`{license}`." if license else "Not stated by the author."
    return f"## Licence\n\n{stated} The licence of the base model holds, too, for whatever is done with its weights."


def _made(config: NeuronTuneConfig, evidence: Evidence) -> str:
    provenance = config.provenance or {}
    versions = provenance.get("versions") or {}
    lines = ["## How it was made"]
    if evidence.command:
        lines.append(f"```\n{evidence.command}\n```")
    if provenance.get("prompt_set"):
        lines.append(f"Prompt set: `{inline(str(provenance['prompt_set']))}`.")
    if versions and isinstance(versions, dict):
        lines.append("With " + ", ".join(f"{inline(n)} {inline(str(v))}" for n, v in versions.items()) + ".")
    return "\n\n".join(lines if len(lines) > 1 else [*lines, "The author has kept no record."])


def inline(text: str, *, most: int = 200) -> str:
    """A text from a file as part of one line or cell of Markdown."""
    return re.sub(r"\s+", " ", text)[:most].replace("|", "\\|").replace("<", "&lt;").strip()
