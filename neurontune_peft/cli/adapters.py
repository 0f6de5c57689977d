"""What the commands share that decide about an adapter: loading it on its model, and keeping presets in its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurontune_peft.cli.common import ModelOptions, with_answers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from neurontune_peft.prompts import PromptSet


@dataclass(frozen=True)
class AdapterOptions(ModelOptions):
    """
    Which adapter is loaded on which model, and what it is asked.

    Args:
        adapter: Directory or Hub name of the adapter.
        prompts: Directory of a prompt set; the shipped one by default. Its test split is asked.
        strict: Refuse an adapter that was made for another base model or chat template, instead of warning.
        max_new_tokens: Most tokens of an answer.
        batch_size: Requests answered at once.
    """

    adapter: str = field(kw_only=True)
    prompts: str | None = None
    strict: bool = False
    max_new_tokens: int = 32
    batch_size: int = 64

    def measuring(self) -> dict[str, Any]:
        """Options of [`evaluate`]."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "chat_template": self.chat_template,
        }

    def load_tuned(self) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """
        Load model, adapter and tokenizer.

        Raises:
            ValueError: When one of them cannot be loaded, or the adapter is one of another method.
        """
        from peft import PeftModel

        from neurontune_peft.tuner import NeuronTuneConfig
        from neurontune_peft.tuner.files import AdapterFile

        AdapterFile.load(self.adapter)  # before the model, as a model takes long
        model, tokenizer = self.load()
        config = NeuronTuneConfig.from_pretrained(self.adapter)
        config.strict = self.strict
        tuned = PeftModel.from_pretrained(model, self.adapter, config=config)
        tuned.check_tokenizer(tokenizer, chat_template=self.chat_template, strict=self.strict)
        return tuned, tokenizer

    def with_reference_answers(
        self, prompts: PromptSet, tuned: PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> PromptSet:
        """Give benign requests without an answer the base model's own, as perplexity needs them."""
        with tuned.disable_adapter():
            return with_answers(prompts, tuned.get_base_model(), tokenizer, chat_template=self.chat_template)


def check_local(adapter: str) -> None:
    """
    Refuse to write presets anywhere but into a local directory.

    Raises:
        ValueError: Shows the name.
    """
    if not Path(adapter, "adapter_config.json").is_file():
        raise ValueError(
            f"got adapter '{adapter}', whose files are not in a local directory; expected one to write presets into; "
            "download it first, or leave the option out"
        )


def write_presets(adapter: str, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Add presets to an adapter's configuration, which is replaced as a whole; others that it has are kept.

    Args:
        adapter (`str`): Directory of the adapter.
        presets (`Mapping[str, Mapping[str, Any]]`): Name to setting.
    """
    from neurontune_peft.tuner import NeuronTuneConfig
    from neurontune_peft.tuner.saved import relative_base

    check_local(adapter)
    config = NeuronTuneConfig.from_pretrained(adapter)
    config.presets = {**(config.presets or {}), **{name: dict(values) for name, values in presets.items()}}
    config.base_model_name_or_path = relative_base(config.base_model_name_or_path)
    config.__post_init__()  # refuses what could not be loaded again
    config.save_pretrained(adapter)
