"""`neurontune evaluate`: how safe and how useful is a model, with and without an adapter?"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurontune_peft.cli.attribute import device_of, joined
from neurontune_peft.cli.common import ModelOptions, versions, with_answers
from neurontune_peft.cli.judge import judges_by_name

if TYPE_CHECKING:
    from neurontune_peft.evaluation import Report


@dataclass(frozen=True)
class Evaluate(ModelOptions):
    """
    Measure attack success, refusals and utility on the test prompts.

    Example: neurontune evaluate user/chat-model --adapter user/adapter --output report.json

    Args:
        adapter: Directory or Hub name of an adapter; base and tuned model are then measured side by side.
        prompts: Directory of a prompt set; the shipped one by default.
        output: JSON file for the report, with the answers; `neurontune report` makes a page of it.
        strength: Dial of the adapter: 0 is the base model, 1 the adapter as trained.
        strict: Refuse an adapter that was made for another base model or chat template, instead of warning.
        max_new_tokens: Most tokens of an answer.
        batch_size: Requests answered at once; answers do not depend on it.
        samples: Further answers to each harmful request, drawn at the temperature: does any of them comply?
        temperature: Temperature of the drawn answers, such as 0.7.
        seed: Seed of the drawn answers.
        cache: Directory that keeps answers; a repeated command reads them, an interrupted one goes on.
        judge: One or more judges (see `neurontune judge`); the first one's verdicts are counted.
        answers: JSON lines of answers that another engine made to these prompts; MODEL is then not loaded.
        tasks: Tasks of lm-evaluation-harness to measure the models on too (extra "eval").
        tasks_limit: Most examples of each task.
        tasks_path: Directory with own task files (YAML).
    """

    adapter: str | None = None
    prompts: str | None = None
    output: Path | None = None
    strength: float = 1.0
    strict: bool = False
    max_new_tokens: int = 32
    batch_size: int = 64
    samples: int = 0
    temperature: float = 0.0
    seed: int = 0
    cache: Path | None = None
    judge: tuple[str, ...] = ("format",)
    answers: Path | None = None
    tasks: tuple[str, ...] = ()
    tasks_limit: int | None = None
    tasks_path: Path | None = None

    def run(self) -> dict[str, Any]:
        """Measure, print and save; processes of `accelerate launch` or `torchrun` share the work."""
        if self.answers is not None:
            return self._sum_up(self.answers)
        with joined() as state:
            if state is None:
                return self._measure(nullcontext())
            own = replace(self, device=self.device or device_of(state))
            with redirect_stdout(sys.stdout if state.is_main_process else StringIO()):
                own = own if state.is_main_process else replace(own, output=None)
                return own._measure(state.main_process_first())  # the others read its reference answers

    def _measure(self, alone: AbstractContextManager[Any]) -> dict[str, Any]:
        from peft import PeftModel

        from neurontune_peft.evaluation import Generation, evaluate
        from neurontune_peft.prompts import PromptSet
        from neurontune_peft.report import compare_markdown, summary
        from neurontune_peft.tuner import NeuronTuneConfig

        generation = Generation(
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            temperature=self.temperature,
            n_samples=self.samples,
            seed=self.seed,
            cache=self.cache,
        )
        judges = judges_by_name(self.judge)
        if self.tasks and find_spec("lm_eval") is None:  # said before models are loaded and answers made
            raise ValueError(
                "got --tasks without the package lm_eval; expected it; run pip install 'neurontune-peft[eval]'"
            )
        prompts = PromptSet.load(self.prompts)
        model, tokenizer = self.load()
        with alone:
            prompts = with_answers(prompts, model, tokenizer, chat_template=self.chat_template)
        options: dict[str, Any] = {
            "generation": generation,
            "chat_template": self.chat_template,
            "judges": judges,
        }
        if self.adapter is None:
            report = evaluate(model, tokenizer, prompts, **options)
            report = self._with_tasks(report, model, tokenizer)
            print(report)
            _print_details(report)
            return self._saved(None, report)
        config = NeuronTuneConfig.from_pretrained(self.adapter)
        config.strict = self.strict
        tuned = PeftModel.from_pretrained(model, self.adapter, config=config)
        tuned.check_tokenizer(tokenizer, chat_template=self.chat_template, strict=self.strict)
        tuned.set_strength(self.strength)
        with tuned.disable_adapter():
            before = evaluate(tuned.get_base_model(), tokenizer, prompts, **options)
            before = self._with_tasks(before, tuned.get_base_model(), tokenizer)
        after = self._with_tasks(evaluate(tuned, tokenizer, prompts, **options), tuned, tokenizer)
        print(compare_markdown(before, after))
        print(summary(before, after))
        for name, report in (("base model", before), ("tuned", after)):
            if report.sampled is not None:
                print(f"\n{name}: {report.sampled}")
        return self._saved(before, after)

    def _sum_up(self, answers: Path) -> dict[str, Any]:
        from neurontune_peft.evaluation import read_answers, report_from_answers
        from neurontune_peft.prompts import PromptSet

        if self.adapter is not None or self.tasks:
            raise ValueError(
                "got --answers with --adapter or --tasks; expected answers alone, as no model is loaded; leave one out"
            )
        rows = read_answers(answers)
        judges = judges_by_name(self.judge)
        report = report_from_answers(rows, PromptSet.load(self.prompts), judges=judges)
        print(report)
        _print_details(report)
        return self._saved(None, report)

    def _with_tasks(self, report: Report, model: Any, tokenizer: Any) -> Report:
        from neurontune_peft.evaluation.harness import harness_tasks

        if not self.tasks:
            return report
        found = harness_tasks(
            model, tokenizer, self.tasks, limit=self.tasks_limit, task_path=self.tasks_path, batch_size=self.batch_size
        )
        assert report.details is not None
        return replace(report, details=replace(report.details, tasks=found))

    def _saved(self, before: Report | None, after: Report) -> dict[str, Any]:
        from neurontune_peft.cli.command_line import command_line
        from neurontune_peft.report import Document, adapter_part
        from neurontune_peft.report.adapter import portable
        from neurontune_peft.tuner.files import AdapterFile

        document = Document(
            before,
            after,
            adapter=None if self.adapter is None else adapter_part(AdapterFile.load(self.adapter)),
            provenance={
                "model": portable(self.model),
                "prompt_set": after.prompt_set,
                "judges": [after.judge],
                "options": dict(after.options),
                "seed": self.seed,
                "versions": versions(),
            },
            # The report is the same wherever it is written, and on each device of processes that share the work.
            command=command_line("evaluate", replace(self, device=None, output=None)),
        )
        if self.output is not None:
            document.save(self.output)
        return document.as_dict()


def _print_details(report: Report) -> None:
    if report.details is not None:
        print(f"\n{report.details.markdown()}")
