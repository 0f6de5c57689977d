"""Configuration of the PEFT method."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, PeftType

from neurontune_peft.checks import check_format_version, parse_json, write_atomically
from neurontune_peft.neurons import Neurons
from neurontune_peft.tuner.adapter_file import check_adapter_file, check_cached
from neurontune_peft.tuner.checksum import CONFIG_KEY, check_settings, config_checksum
from neurontune_peft.tuner.counts import check_counts_fit, check_neuron_counts, is_counts
from neurontune_peft.tuner.modulation import (
    STATIC_FORMAT,
    TRIGGER_FIELDS,
    WINDOW_FORMAT,
    check_modulation,
    format_of,
)
from neurontune_peft.tuner.names import METHOD
from neurontune_peft.tuner.presets import check_presets
from neurontune_peft.tuner.saved import finish_saved

# Bytes of the longest adapter_config.json that is read; what `neurontune tune` writes has some 20 kB.
MAX_CONFIG = 16_000_000


@dataclass
class NeuronTuneConfig(PeftConfig):
    """
    Configuration of a NeuronTune adapter: one factor for each selected neuron of a model.

    Args:
        target_modules (`list[str]` or `str`, *optional*):
            Modules whose neurons are scaled, by suffix, or one regular expression for the whole path. The default
            finds the MLP output projections of the model ([`find_sites`]); the names found are written here.
        exclude_modules (`list[str]` or `str`, *optional*): Modules to leave out, matched in the same way.
        neurons ([`Neurons`] or `str`, *optional*):
            The neurons to scale, or the path of a file written by [`Neurons.save`]. Without it, every neuron of every
            site is trainable (a dense adapter). Not saved here: the adapter file holds the indices.
        neuron_counts (`dict[str, dict[str, int]]`, *optional*):
            Role to site to number of neurons. Filled in from `neurons`; a loaded adapter takes its shapes from here.
        site_widths (`dict[str, int]`, *optional*):
            Site to the number of neurons that it has in all. Filled in from `neurons`; checked when loading.
        neuron_side (`str`, *optional*, defaults to `"input"`):
            `"input"`: a module's neurons are its input features; `"output"`: its output features, bias included.
        layers_to_transform (`list[int]` or `int`, *optional*): Only the layers with these numbers.
        layers_pattern (`list[str]` or `str`, *optional*): Name of the list of layers, for unusual architectures.
        modules_to_save (`list[str]`, *optional*): Further modules that are trained and saved whole.
        init_weights (`bool`, *optional*, defaults to `True`):
            `True` starts as the identity; `False` draws random deltas, for tests and ablations.
        base_model_fingerprint (`str`, *optional*):
            Fingerprint of the weights that are scaled, filled in when the adapter is made. Another model gives a
            warning at load time, or an error with `strict`.
        strict (`bool`, *optional*, defaults to `False`): Refuse a base model whose fingerprint differs. Not saved.
        provenance (`dict`, *optional*): How the adapter was made: options, seeds, versions, results. JSON values only.
        modulation (`str`, *optional*, defaults to `"static"`):
            `"static"`: the scales act on every request. `"dynamic"` (`ours`; nearest relative for steering vectors:
            CAST, arXiv 2409.05907): a trigger, one weight per neuron, decides each request's strength.
        strength_off (`float`, *optional*, defaults to `0.0`): Strength of requests that do not trigger.
        strength_on (`float`, *optional*, defaults to `1.0`): Strength of requests that do.
        trigger_bias (`float`, *optional*, defaults to `0.0`):
            A request's score is this plus the weighted sum of its neurons' unscaled activations.
        trigger_threshold (`float`, *optional*, defaults to `0.0`): Scores above it trigger.
        trigger_gate (`str`, *optional*, defaults to `"step"`):
            `"step"`: off or on. `"ramp"`: off up to the threshold, then rising with the score, to on at `trigger_ramp`
            above it. `"sigmoid"`: in between everywhere, by `sigmoid(score - threshold)`.
        trigger_ramp (`float`, *optional*, defaults to `0.0`):
            How far above the threshold a score gives the whole strength, for the gate `"ramp"`.
        trigger_suffix (`list[int]`, *optional*):
            Token ids with which the chat template ends a prompt ([`generation_suffix`]); the score is read where the
            last of them ends in a row. Without it, at the row's last token.
        trigger_opening (`list[int]`, *optional*):
            Token ids with which the chat template opens a user's turn ([`turn_opening`]); the trigger's means are over
            the tokens after the last of them. Without it, over all but the row's first.
        trigger_window (`int`, *optional*):
            The trigger reads means over windows of so many tokens, each of which overlaps the next by half, and the
            highest counts. Without it, one mean over the whole turn. Not written where there is none.
        recheck_every (`int`, *optional*): Decide again after every so many tokens of the answer.
        presets (`dict`, *optional*):
            Name to a setting of the dials (`strength`, `counts`, `threshold`) for [`~NeuronTuneModel.use_preset`], as
            [`sweep`] chooses them. Not written where there are none.
        checksum (`str`, *optional*):
            Checksum of the fields that decide what the adapter does. Written when the adapter is saved; compared, and
            then forgotten, when a configuration is made of a file.
        format_version (`int`, *optional*, defaults to `1`):
            Version of the adapter's file format; 2 with dynamic modulation, 3 where its trigger reads windows.

    Example:

        ```py
        >>> import neurontune_peft
        >>> from neurontune_peft import NeuronTuneConfig
        >>> from peft import get_peft_model

        >>> model = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons="neurons.json"))
        ```
    """

    target_modules: set[str] | list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules whose neurons are scaled (suffixes, or one regular expression). Default: MLP outputs."
        },
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out."}
    )
    neurons: Neurons | str | os.PathLike[str] | None = field(
        default=None, metadata={"help": "Neurons to scale, or the path of a neuron file. Default: all of each site."}
    )
    neuron_counts: dict[str, dict[str, int]] | None = field(
        default=None, metadata={"help": "Role to site to number of neurons; filled in from `neurons`."}
    )
    site_widths: dict[str, int] | None = field(default=None, metadata={"help": "Site to its number of neurons."})
    neuron_side: str = field(
        default="input", metadata={"help": "Neurons are 'input' or 'output' features of a module."}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these layers."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved whole."}
    )
    init_weights: bool = field(default=True, metadata={"help": "True: identity. False: random deltas, for tests."})
    base_model_fingerprint: str | None = field(default=None, metadata={"help": "Fingerprint of the scaled weights."})
    strict: bool = field(
        default=False, metadata={"help": "Refuse a base model whose fingerprint differs (not saved)."}
    )
    provenance: dict[str, Any] | None = field(default=None, metadata={"help": "How the adapter was made."})
    modulation: str = field(default="static", metadata={"help": "'static', or 'dynamic': decided for each request."})
    strength_off: float = field(default=0.0, metadata={"help": "Strength of requests that do not trigger."})
    strength_on: float = field(default=1.0, metadata={"help": "Strength of requests that trigger."})
    trigger_bias: float = field(default=0.0, metadata={"help": "Score of a request whose neurons are silent."})
    trigger_threshold: float = field(default=0.0, metadata={"help": "Scores above it trigger."})
    trigger_gate: str = field(default="step", metadata={"help": "'step', 'ramp' or 'sigmoid'."})
    trigger_ramp: float = field(default=0.0, metadata={"help": "How far above the threshold strength is whole."})
    trigger_suffix: list[int] | None = field(
        default=None, metadata={"help": "Token ids with which the chat template ends a prompt."}
    )
    trigger_opening: list[int] | None = field(
        default=None, metadata={"help": "Token ids with which the chat template opens a user's turn."}
    )
    trigger_window: int | None = field(default=None, metadata={"help": "Means over windows of so many tokens."})
    recheck_every: int | None = field(default=None, metadata={"help": "Decide again after so many answer tokens."})
    presets: dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "Name to a setting of the dials, chosen from measurements."}
    )
    checksum: str | None = field(default=None, metadata={"help": "Checksum of the settings, written when saving."})
    format_version: int = field(default=STATIC_FORMAT, metadata={"help": "Version of the file format."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format_version(self.format_version, WINDOW_FORMAT, what="adapter configuration")
        check_modulation(self)
        self.format_version = format_of(self.modulation, self.trigger_window)
        self.peft_type = PeftType[METHOD]
        # Lists become sets, as in PEFT's own configurations; the names that an adapter finds by itself stay in order.
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)
        if self.neuron_side not in ("input", "output"):
            raise ValueError(
                f"got neuron_side={self.neuron_side!r}; expected 'input' or 'output'; choose the features "
                "that are neurons"
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"got layers_to_transform={self.layers_to_transform!r} with the expression target_modules="
                f"{self.target_modules!r}; expected a list of names; put the layers into the expression"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"got layers_pattern={self.layers_pattern!r} without layers_to_transform; expected both; name "
                "the layers"
            )
        if isinstance(self.neurons, (str, os.PathLike)):
            self.neurons = Neurons.load(self.neurons)
        if self.neurons is not None:
            self.neuron_counts = self.neurons.counts
        if self.neuron_counts is not None:
            check_neuron_counts(self.neuron_counts)
        if self.site_widths is not None and not is_counts(self.site_widths):
            raise ValueError(
                f"got site_widths={self.site_widths!r:.200}; expected {{site: positive number}}; leave it out to "
                "have it filled in"
            )
        check_presets(self)
        check_counts_fit(self.neuron_counts or {}, self.site_widths or {})
        if self.provenance is not None and not isinstance(self.provenance, dict):
            raise ValueError(
                f"got provenance={self.provenance!r:.200}; expected values by name; leave it out, or pass a dictionary"
            )
        if self.checksum is not None:
            # The last check, as it says least; then forgotten, as fields may be changed from now on.
            check_settings(config_checksum(self.to_dict()), self.checksum, what=CONFIG_NAME)
            self.checksum = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # X-LoRA, for one, takes any adapter for a LoRA and asks for what only LoRA has.
            raise AttributeError(
                f"got a {METHOD} adapter, asked for `{name}`, which its configuration does not have; expected an "
                "adapter of another method; where only LoRA will do, convert it with peft.convert_to_lora"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the same configuration always gives the same text."""
        unsaved = ("neurons", "strict", CONFIG_KEY, *(TRIGGER_FIELDS if self.modulation == "static" else ()))
        # Older versions warn of fields that they do not know.
        optional = tuple(name for name in ("presets", "trigger_window") if getattr(self, name) is None)
        saved = [name for name in self.__dataclass_fields__ if name not in (*unsaved, *optional)]
        values = {name: getattr(self, name) for name in saved}
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """
        Write `adapter_config.json` as PEFT does, but under a temporary name that is renamed: it is never half written.

        Args:
            save_directory (`str`): The directory, created when missing.
            kwargs: As PEFT takes them.
        """
        if os.path.isfile(save_directory):
            super().save_pretrained(save_directory, **kwargs)  # raises PEFT's own error
        with tempfile.TemporaryDirectory() as staging:
            super().save_pretrained(staging, **kwargs)
            values = json.loads(Path(staging, CONFIG_NAME).read_text(encoding="utf-8"))
        write_atomically(Path(save_directory, CONFIG_NAME), config_text(values))
        finish_saved(Path(save_directory))

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """
        Read a configuration file as PEFT does, but strictly, and none that is too long to be one.

        Args:
            path_json_file (`str`): The file.
            kwargs: As PEFT takes them.

        Raises:
            ValueError: When it is no JSON object, holds a name twice, or has more than 16 MB.
        """
        path = Path(path_json_file)
        size = path.stat().st_size
        if size > MAX_CONFIG:
            raise ValueError(
                f"got '{path.name}' of {size:,} bytes; expected at most {MAX_CONFIG:,}; download the adapter again, "
                "from whom you trust"
            )
        values = parse_json(path.read_bytes(), what=f"'{path.name}'")
        values.pop("runtime_config", None)  # PEFT ignores it, too
        return values

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> NeuronTuneConfig:
        """
        Load the configuration and make sure that the adapter file beside it is whole, in a local directory and, where
        it has been downloaded before, in the Hub's cache.

        PEFT asks for the configuration before it touches the model, so a damaged file is refused while the model is
        still whole. A file that is yet to be downloaded is checked by [`check_downloaded`].

        Raises:
            ValueError: When the adapter file is damaged, or the configuration is of a newer format.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if not isinstance(config, cls):  # PEFT follows the file's own peft_type
            return config
        weights = Path(pretrained_model_name_or_path, subfolder or "", SAFETENSORS_WEIGHTS_NAME)
        if weights.is_file():
            check_adapter_file(weights, modulation=config.modulation)
            if not config.neuron_counts or not config.site_widths:
                raise ValueError(
                    f"got '{weights.parent}' with an adapter file but no neuron_counts and site_widths in its "
                    "adapter_config.json; expected both; save the adapter again with save_pretrained"
                )
        elif weights.parent.is_dir() and config.neuron_counts and not weights.with_name(WEIGHTS_NAME).is_file():
            raise ValueError(
                f"got no {SAFETENSORS_WEIGHTS_NAME} in '{weights.parent}'; expected it beside adapter_config.json; "
                "save or download the adapter again"
            )
        elif not weights.parent.is_dir():
            check_cached(pretrained_model_name_or_path, subfolder, config, **kwargs)
        return config


def config_text(values: Mapping[str, Any]) -> str:
    """
    The text of `adapter_config.json` as PEFT formats it, with the checksum of its settings.

    Args:
        values (`Mapping[str, Any]`): Name to JSON value, as [`NeuronTuneConfig.to_dict`] gives them.
    """
    return json.dumps({**values, CONFIG_KEY: config_checksum(values)}, indent=2, sort_keys=True)
