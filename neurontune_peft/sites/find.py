"""Where the neurons of a causal LM are: the table of known architectures, then the structural rule, then an error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from neurontune_peft.neurons import Site
from neurontune_peft.sites.modules import (
    Projection,
    bare_model,
    hidden_sizes,
    language_model,
    projections,
    unknown_experts,
)
from neurontune_peft.sites.structure import find_by_structure
from neurontune_peft.sites.table import TABLE


def find_sites(model: nn.Module) -> dict[str, Site]:
    """
    Find the MLP output projections of a causal LM; their input features are its neurons.

    The table of known architectures answers first. The structural rule then adds what a row does not name, because
    settings of a config can bring in modules that the row's author never saw. Attention, state-space mixers, routers,
    heads, and the encoders of other modalities are never sites.

    Args:
        model (`nn.Module`):
            A causal LM, also with adapters of PEFT. Of a vision-language model or an encoder-decoder, the part that
            produces text is searched.

    Returns:
        `dict[str, Site]`: Sites by module path in the model without adapters, in the model's order. Of fused experts
        the experts module is the site, and its width is experts times intermediate size. `Site.rule` is `"table"` or
        `"structure"`.

    Raises:
        ValueError: When there is no MLP, or an experts module of unknown layout.
    """
    model = bare_model(model)
    candidates = projections(model)
    by_table = find_by_table(candidates, model_types(model))
    by_structure = {p.name for p in find_by_structure(candidates, hidden_sizes(model))}
    sites = {
        p.name: Site(p.name, p.width, p.kind, "table" if p.name in by_table else "structure")
        for p in candidates
        if p.name in by_table or p.name in by_structure
    }
    _check_complete(model, sites)
    return sites


def sites_from_config(
    config_or_path: PreTrainedConfig | str | os.PathLike[str], *, trust_remote_code: bool = False
) -> dict[str, Site]:
    """
    Find the sites of a model from its config alone; no weight is loaded or allocated, whatever its size.

    Args:
        config_or_path (`PreTrainedConfig`, `str` or `os.PathLike`):
            The config, or the directory or Hub id of a model that has one.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Allow code from the model's repository to run.

    Returns:
        `dict[str, Site]`: As [`find_sites`] returns it.

    Raises:
        ValueError: When transformers builds no causal LM from the config, or as [`find_sites`] raises it.
    """
    config = config_or_path
    if not isinstance(config, PreTrainedConfig):
        config = AutoConfig.from_pretrained(config, trust_remote_code=trust_remote_code)
    return find_sites(empty_model(config, trust_remote_code=trust_remote_code))


def empty_model(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """
    Build a model on the meta device: its modules and shapes without any weight.

    Args:
        config (`PreTrainedConfig`): Its config.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Allow code from the model's repository to run.

    Raises:
        ValueError: When transformers builds no causal LM from the config.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights or generation, of a model that is only looked at
        return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)


def find_by_table(candidates: Sequence[Projection], model_types: Sequence[str]) -> set[str]:
    """
    Return the names of the projections that the table's row of the first known model type names.

    Args:
        candidates (`Sequence[Projection]`): Projections of the model.
        model_types (`Sequence[str]`): `model_type` of the language model's config, then of the whole model's.
    """
    row = next((TABLE[model_type] for model_type in model_types if model_type in TABLE), ())
    return {p.name for p in candidates if any(_ends_with(p.name, suffix) for suffix in row)}


def _ends_with(name: str, suffix: str) -> bool:
    """Whether a path ends with a suffix, in which `*` stands for one part (a layer's number, a language)."""
    wanted = suffix.split(".")
    parts = name.split(".")[-len(wanted) :]
    return len(parts) == len(wanted) and all(w in ("*", part) for w, part in zip(wanted, parts, strict=True))


def model_types(model: nn.Module) -> list[str]:
    """Return the `model_type` of a bare model's language part, then its own; empty without a config."""
    configs = (getattr(part, "config", None) for part in (language_model(model)[1], model))
    return [config.model_type for config in configs if isinstance(config, PreTrainedConfig)]


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """
    Return the class of transformers that builds and loads a model with this config.

    Raises:
        ValueError: When there is none.
    """
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if remote or type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    raise ValueError(
        f"got a config of model type '{config.model_type}'; expected one of a causal LM or a vision-language model "
        "that transformers can build; build the model yourself and name its modules in `target_modules`"
    )


def _check_complete(model: nn.Module, sites: dict[str, Site]) -> None:
    unknown = unknown_experts(model, sites)
    if sites and not unknown:
        return
    model_type = "/".join(dict.fromkeys(model_types(model))) or "unknown"
    what = f"experts of unknown layout ({', '.join(unknown)})" if unknown else "no MLP output projection"
    raise ValueError(
        f"got {type(model).__name__} (model type '{model_type}') with {what}; expected projections from an MLP's "
        "intermediate size back to the hidden size, or fused experts with `down_proj` of shape (E, H, I); name the "
        "modules whose input features are neurons in `target_modules` (a list of name endings or a regular expression)"
    )
