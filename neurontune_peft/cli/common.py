"""What the commands share: loading models, checking output directories, and the record of how a result was made."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

    from neurontune_peft.prompts import PromptSet


@dataclass(frozen=True)
class ModelOptions:
    """
    Which model is loaded, and how.

    Args:
        model: Directory or Hub name of a causal language model.
        dtype: Number type of the computation; "auto" is float32 on a CPU and the checkpoint's own elsewhere.
        device: Where to compute; by default a GPU when there is one.
        quantize: Load the weights in 8 or 4 bits, by bitsandbytes.
        chat_template: Jinja template, or a file with one, in place of the tokenizer's own.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    quantize: Literal["int8", "nf4"] | None = None
    chat_template: str | None = None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """
        Load model and tokenizer.

        Raises:
            ValueError: When there is no such model, or the device does not exist.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        auto = "float32" if device == "cpu" else "auto"
        options: dict[str, Any] = {"dtype": auto if self.dtype == "auto" else self.dtype}
        if self.quantize is not None:  # such weights cannot be moved later
            options |= {"quantization_config": quantization(self.quantize), "device_map": {"": device}}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            model = AutoModelForCausalLM.from_pretrained(self.model, **options)
            return (model if self.quantize else model.to(device)).eval(), tokenizer
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"got model '{self.model}' on '{device}' ({reason}); expected a directory or Hub name of a causal "
                "language model, and a device of this machine; correct the name or the device"
            ) from error


def quantization(kind: str) -> BitsAndBytesConfig:
    """
    How `--quantize` loads weights.

    Args:
        kind (`str`): `"int8"` or `"nf4"`.

    Raises:
        ValueError: When bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ValueError(f"got quantize='{kind}'; expected bitsandbytes to be installed; pip install bitsandbytes")
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def with_answers(
    prompts: PromptSet, model: nn.Module, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> PromptSet:
    """
    Give benign prompts without an answer the model's own, computed once and cached.

    Args:
        prompts ([`PromptSet`]): The prompt set.
        model (`nn.Module`): The base model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        options: Further options of [`complete_responses`].
    """
    from huggingface_hub import constants

    from neurontune_peft.prompts import complete_responses
    from neurontune_peft.tuner.fingerprint import fingerprint

    return complete_responses(
        prompts,
        model,
        tokenizer,
        cache=Path(constants.HF_HOME, "neurontune", "answers.json"),
        fingerprint=fingerprint(dict(model.named_parameters())) or "unknown",
        **options,
    )


def parse_counts(counts: Sequence[str]) -> dict[str, int | float]:
    """
    Read count thresholds such as `safety=128` or, as a share of all neurons, `utility=0.01`.

    Raises:
        ValueError: Shows the word that is no count.
    """
    parsed: dict[str, int | float] = {}
    for word in counts:
        role, _, number = word.partition("=")
        try:
            parsed[role] = int(number) if number.isdigit() else float(number)
        except ValueError:
            raise ValueError(
                f"got count '{word}'; expected ROLE=NUMBER or ROLE=SHARE; write for example safety=128 or safety=0.02"
            ) from None
    return parsed


def check_output(output: Path) -> None:
    """
    Refuse an output directory that holds something already.

    Raises:
        ValueError: Names the directory.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"got output '{output}', which is not empty; expected a new or empty directory; choose another or empty it"
        )


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """
    Collect files in a temporary directory beside `output` and rename it at the end: all of them appear, or none.

    Args:
        output (`Path`): Where the directory shall stand.

    Raises:
        ValueError: When another process has put its result there first; that one stays.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        try:
            os.replace(temporary, output)
        except OSError as error:
            if not output.exists():
                raise
            raise ValueError(
                f"got output '{output}', which another process has filled meanwhile; expected a new or empty "
                "directory; that one's result stands there, choose another directory for this one"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("neurontune-peft", "torch", "transformers", "peft", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
