"""`neurontune evaluate`: how safe and how useful is a model, with and without an adapter?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from neurontune_peft.checks import write_atomically
from neurontune_peft.cli.common import ModelOptions, with_answers
from neurontune_peft.evaluation import Report, evaluate
from neurontune_peft.prompts import PromptSet
from neurontune_peft.report import compare_markdown, summary
from neurontune_peft.report.comparison import comparison_dict
from neurontune_peft.tuner import NeuronTuneConfig


@dataclass(frozen=True)
class Evaluate(ModelOptions):
    """
    Measure attack success, refusals and utility on the test prompts.

    Example: neurontune evaluate user/chat-model --adapter user/adapter --output report.json

    Args:
        adapter: Directory or Hub name of an adapter; base and tuned model are then measured side by side.
        prompts: Directory of a prompt set; the shipped one by default.
        output: JSON file for the report, with the answers.
        strength: Dial of the adapter: 0 is the base model, 1 the adapter as trained.
        strict: Refuse an adapter that was made for another base model or chat template, instead of warning.
        max_new_tokens: Most tokens of an answer.
        batch_size: Requests answered at once.
    """

    adapter: str | None = None
    prompts: str | None = None
    output: Path | None = None
    strength: float = 1.0
    strict: bool = False
    max_new_tokens: int = 32
    batch_size: int = 64

    def run(self) -> None:
        """Measure, print and save."""
        prompts = PromptSet.load(self.prompts)
        model, tokenizer = self.load()
        prompts = with_answers(prompts, model, tokenizer, chat_template=self.chat_template)
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "chat_template": self.chat_template,
        }
        if self.adapter is None:
            report = evaluate(model, tokenizer, prompts, **options)
            print(report)
            self._save(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
            return
        config = NeuronTuneConfig.from_pretrained(self.adapter)
        config.strict = self.strict
        tuned = PeftModel.from_pretrained(model, self.adapter, config=config)
        tuned.check_tokenizer(tokenizer, chat_template=self.chat_template, strict=self.strict)
        tuned.set_strength(self.strength)
        with tuned.disable_adapter():
            before = evaluate(tuned.get_base_model(), tokenizer, prompts, **options)
        after: Report = evaluate(tuned, tokenizer, prompts, **options)
        print(compare_markdown(before, after))
        print(summary(before, after))
        self._save(json.dumps(comparison_dict(before, after), indent=1, ensure_ascii=False))

    def _save(self, text: str) -> None:
        if self.output is not None:
            write_atomically(self.output, text + "\n")
