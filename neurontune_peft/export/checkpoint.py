"""A base model on disk: which tensors of which files hold the weights of a site. Nothing is loaded whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from neurontune_peft.sites.find import empty_model
from neurontune_peft.tuner.experts import ExpertsLayout, experts_layout
from neurontune_peft.tuner.header import Header, TensorEntry, read_header

# What a served model needs beside its weights; licences travel with the weights that they cover.
COMPANIONS = (
    "config.json",
    "quant*_config.json",  # what older tools write beside quantised weights
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class SiteWeights:
    """
    Where a checkpoint keeps the weights of a site.

    Args:
        site (`str`): Path of the module in the model.
        keys (`tuple[str, ...]`): Names of the tensors: one, or one per expert in the order of the experts.
        bias (`str` or `None`): Name of the module's bias.
        transposed (`bool`): Weights are `(in, out)`, as those of a Conv1D, instead of `(out, in)`.
        layout ([`ExpertsLayout`] or `None`): Of fused experts.
    """

    site: str
    keys: tuple[str, ...]
    bias: str | None
    transposed: bool
    layout: ExpertsLayout | None


@dataclass(frozen=True)
class Checkpoint:
    """
    A model's directory with weights in safetensors.

    Args:
        directory (`Path`): The directory.
        config (`PreTrainedConfig`): The model's config.
        files (`Mapping[str, str]`): Name of each tensor to the file that holds it.
    """

    directory: Path
    config: PreTrainedConfig
    files: Mapping[str, str]

    @classmethod
    def open(cls, model: str | os.PathLike[str]) -> Checkpoint:
        """
        Find a model's files, on disk or (through huggingface_hub's cache) on the Hub.

        Args:
            model (`str` or `os.PathLike`): Directory or Hub name.

        Raises:
            ValueError: When there is no such model, or its weights are not in safetensors.
        """
        directory = _directory(model)
        try:
            config = AutoConfig.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"got model '{model}', whose config cannot be read ({str(error).splitlines()[0]}); expected a causal "
                "language model; name its directory or Hub name with --model"
            ) from error
        return cls(directory=directory, config=config, files=_files_of_tensors(directory))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model on the meta device: modules and shapes without weights."""
        return empty_model(self.config)

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """Names of the weight files."""
        return tuple(sorted(set(self.files.values())))

    @cached_property
    def _sources(self) -> dict[str, list[str]]:
        """Name of a parameter in the model to the tensors of the checkpoint that it is made of."""
        transforms = get_model_conversion_mapping(self.model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix, state = self.model.base_model_prefix, self.model.state_dict()
        found: dict[str, list[str]] = {}
        for key in self.files:
            target, pattern = rename_source_key(
                key, renamings, converters, base_model_prefix=prefix, meta_state_dict=state
            )
            operations = [] if pattern is None else by_pattern[pattern].operations
            if all(type(operation) is MergeModulelist and operation.dim == 0 for operation in operations):
                found.setdefault(target, []).append(key)
        return {target: sorted(keys, key=dot_natural_key) for target, keys in found.items()}

    def weights_of(self, site: str) -> SiteWeights:
        """
        Find the tensors of a site.

        Args:
            site (`str`): Path of the module in the model.

        Raises:
            ValueError: When the model has no such module, or the checkpoint stores its weights in a way in which
                neurons are no slices.
        """
        module, layout = self.module(site), self.layout_of(site)
        keys = self._sources.get(f"{site}.down_proj" if layout else f"{site}.weight", [])
        if not keys:
            raise ValueError(
                f"got a checkpoint that keeps the weights of '{site}' in a way of its own; expected one tensor per "
                "module or per expert; load the model, call merge_and_unload and save it instead"
            )
        bias = self._sources.get(f"{site}.bias") if layout is None else None
        transposed = layout.transposed if layout else isinstance(module, Conv1D)
        return SiteWeights(
            site=site, keys=tuple(keys), bias=bias[0] if bias else None, transposed=transposed, layout=layout
        )

    def layout_of(self, site: str) -> ExpertsLayout | None:
        """How fused experts store their weights; `None` for other modules."""
        return experts_layout(self.module(site), site)

    def key_of(self, name: str) -> str | None:
        """The one tensor of the checkpoint that becomes this tensor of the model; `None` without it."""
        keys = self._sources.get(name, [])
        return keys[0] if len(keys) == 1 else None

    def dtype_of(self, key: str) -> str:
        """A tensor's dtype in safetensors' words."""
        return self._entry(key).dtype

    def shape_of(self, key: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._entry(key).shape

    def _entry(self, key: str) -> TensorEntry:
        return self._headers[self.files[key]].tensors[key]

    @cached_property
    def _headers(self) -> dict[str, Header]:
        return {name: read_header(self.directory / name) for name in self.shards}

    def module(self, site: str) -> nn.Module:
        """
        The site's module, on the meta device.

        Raises:
            ValueError: When the model has no such module.
        """
        try:
            return self.model.get_submodule(site)
        except AttributeError:
            raise ValueError(
                f"got an adapter with neurons at '{site}'; expected modules of '{self.directory.name}' "
                f"({type(self.model).__name__}); name the adapter's own base model with --model"
            ) from None

    def read(self, key: str) -> Tensor:
        """
        Read one tensor.

        Raises:
            ValueError: When it is quantised, or the file is damaged.
        """
        path = self.directory / self.files[key]
        try:
            with safe_open(str(path), framework="pt") as file:
                check_float(key, file.get_slice(key).get_dtype())
                return file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"got '{path.name}', which cannot be read ({error}); expected whole safetensors files; download the "
                "model again"
            ) from error

    def linear_weight(self, site: str) -> Tensor:
        """
        Read the weight of a plain linear module.

        Returns:
            `torch.Tensor`: Shape `(out, in)`, whatever the module stores.

        Raises:
            ValueError: When the site holds fused experts.
        """
        weights = self.weights_of(site)
        if weights.layout is not None:
            raise ValueError(
                f"got neurons of the fused experts '{site}'; expected linear modules, as serving engines take no "
                "adapters of this kind for experts; use --to merged"
            )
        weight = self.read(weights.keys[0])
        return weight.T if weights.transposed else weight

    def is_biased(self, site: str) -> bool:
        """Whether the site's module has a bias."""
        return self.weights_of(site).bias is not None


def check_float(key: str, dtype: str) -> None:
    """
    Refuse weights in which scales would be rounded.

    Args:
        key (`str`): Name of the tensor.
        dtype (`str`): Its dtype, as safetensors names it.

    Raises:
        ValueError: For anything but plain floating-point numbers of 16 bits and more.
    """
    if dtype not in FLOATS:
        raise ValueError(
            f"got '{key}' stored as {dtype}; expected floating-point weights of 16 bits or more, as scaling quantised "
            "ones would round them; export from the unquantised model, and quantise what is written"
        )


def companions(directory: Path) -> list[Path]:
    """The files that go along with exported weights, relative to the directory; links out of it are followed."""
    found = {path for pattern in COMPANIONS for path in directory.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(directory) for path in found if path.suffix not in (".safetensors", ".py"))


def _directory(model: str | os.PathLike[str]) -> Path:
    place = Path(model).expanduser()  # adapters name models in the user's own directory by "~"
    if place.is_dir():
        return place
    try:
        patterns = ["*.safetensors", SAFE_WEIGHTS_INDEX_NAME, *COMPANIONS]
        return Path(snapshot_download(str(model), allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"got model '{model}' ({str(error).splitlines()[0]}); expected a directory or Hub name; name the base "
            "model of the adapter with --model"
        ) from error


def _files_of_tensors(directory: Path) -> dict[str, str]:
    """Read the index of the weight files, and refuse names that lead out of the directory."""
    index, single = directory / SAFE_WEIGHTS_INDEX_NAME, directory / SAFE_WEIGHTS_NAME
    try:
        if single.is_file():  # in the order in which transformers looks
            with safe_open(str(single), framework="pt") as file:
                files = dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME)
        elif index.is_file():
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            raise ValueError(
                f"got '{directory.name}' without {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}; expected weights "
                "in safetensors; load the model and save it with save_pretrained first"
            )
        check_names(files.values())
        missing = sorted(name for name in set(files.values()) if not (directory / name).is_file())
    except (SafetensorError, OSError, KeyError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"got '{directory.name}' with weight files that cannot be read ({error}); expected whole ones; download "
            "the model again"
        ) from error
    if missing:
        raise ValueError(f"got no {missing[:3]} in '{directory.name}'; expected all shards; download the model again")
    return files


def check_names(names: Iterable[object]) -> None:
    """
    Refuse file names that a repository could use to write or read elsewhere.

    Raises:
        ValueError: For anything but the bare name of a safetensors file.
    """
    for name in set(names):
        plain = isinstance(name, str) and Path(name).name == name and "\\" not in name and "\0" not in name
        if not plain or not str(name).endswith(".safetensors") or str(name).startswith("."):
            raise ValueError(
                f"got the weight file {name!r:.100}; expected the bare name of a safetensors file; do not use this "
                "repository, or correct its index"
            )


def float32(weight: Tensor) -> Tensor:
    """A weight in float32, or in float64 where it is."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
