"""`neurontune stress`: what does an adapter's protection withstand?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurontune_peft.choices import KINDS
from neurontune_peft.cli.adapters import AdapterOptions

if TYPE_CHECKING:
    from neurontune_peft.evaluation.decide.stress import Stress


@dataclass(frozen=True)
class StressTest(AdapterOptions):
    """
    Measure an adapter's protection again after attempts to take it away.

    Kinds: pruning, direction, finetuning, composed, flips, languages, relearning, evasion.

    Example: neurontune stress user/chat-model --adapter adapter --output stress.json --kinds pruning evasion

    Args:
        output: JSON file for the table.
        kinds: Which stresses; all by default.
        max_tests: Most harmful test requests, each with every attack family.
        finetune_steps: Steps of fine-tuning, of 8 requests.
        finetune_lr: Its step size.
        relearn_steps: Steps of relearning, of 8 requests.
        relearn_lr: Its step size.
        flips: Files with one bit flipped.
        budgets: Queries of the trigger per request.
        seed: Of everything that is drawn.
    """

    output: Path | None = None
    kinds: tuple[str, ...] = KINDS
    max_tests: int = 12
    finetune_steps: int = 30
    finetune_lr: float = 1e-4
    relearn_steps: int = 20
    relearn_lr: float = 0.05
    flips: int = 100
    budgets: tuple[int, ...] = (32, 256)
    seed: int = 0

    def run(self) -> Stress:
        """Stress, save and print."""
        from neurontune_peft.evaluation.decide.stress import stress
        from neurontune_peft.prompts import PromptSet

        prompts = PromptSet.load(self.prompts)
        tuned, tokenizer = self.load_tuned()
        result = stress(
            tuned,
            tokenizer,
            self.with_reference_answers(prompts, tuned, tokenizer),
            kinds=self.kinds,
            max_tests=self.max_tests,
            finetune_steps=self.finetune_steps,
            finetune_lr=self.finetune_lr,
            relearn_steps=self.relearn_steps,
            relearn_lr=self.relearn_lr,
            flips=self.flips,
            budgets=self.budgets,
            seed=self.seed,
            **self.measuring(),
        )
        if self.output is not None:
            result.save(self.output)
        print(result)
        return result
