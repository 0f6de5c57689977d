"""`neurontune verify`: is a list of neurons better than random ones of the same layers?"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from neurontune_peft.checks import write_atomically
from neurontune_peft.cli.calls import CheckFailed
from neurontune_peft.cli.common import ModelOptions, check_output, with_answers, written_whole

if TYPE_CHECKING:
    from neurontune_peft.evaluation.trust import Trust
    from neurontune_peft.neurons import Neurons, Scores


@dataclass(frozen=True)
class Verify(ModelOptions):
    """
    Test a list of neurons against layer-matched random ones, on held-out prompts and attacks.

    The exit code is 0 when the list is better than random, 1 when that is not shown, 2 when the call was wrong.

    Example: neurontune verify user/chat-model --neurons neurons.json --scores scores.safetensors --output trust

    Args:
        neurons: Neuron file, as `neurontune select` writes it.
        output: New directory for trust.json, trust.md and the pictures.
        prompts: Directory of a prompt set; the shipped one by default.
        scores: Score file that the neurons were selected from.
        role: Role to test.
        scales: Scales that the neurons are set to.
        n_random: Random sets, at least 20.
        n_prompts: Prompts of each kind.
        methods: Methods to compare; gradient, gate_path and random by default.
        trainability: Train each method's top neurons and random ones for a while, too (slow).
        shares: Shares of all neurons that are trained.
        train_steps: Steps of each training.
        resume: JSON file of finished trainings; an interrupted call goes on from it.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts at once.
        seed: Random sets and prompts.
    """

    neurons: Path = field(kw_only=True)
    output: Path = field(kw_only=True)
    prompts: str | None = None
    scores: Path | None = None
    role: str = "safety"
    scales: tuple[float, ...] = (0.0, 1.5, 2.0)
    n_random: int = 20
    n_prompts: int = 32
    methods: tuple[str, ...] = ()
    trainability: bool = False
    shares: tuple[float, ...] = (0.01, 0.03, 0.12)
    train_steps: int = 60
    resume: Path | None = None
    max_new_tokens: int = 32
    batch_size: int = 8
    seed: int = 0

    def run(self) -> Trust:
        """
        Verify, print and save.

        Raises:
            CheckFailed: When the list is not shown to be better than random; all files are written.
        """
        from neurontune_peft.evaluation.trust import TrainingPlan, verify
        from neurontune_peft.neurons import Neurons, Scores
        from neurontune_peft.prompts import PromptSet
        from neurontune_peft.report.trust import trust_markdown

        check_output(self.output)
        neurons = Neurons.load(self.neurons)
        scores = None if self.scores is None else Scores.load(self.scores)
        given = PromptSet.load(self.prompts)
        model, tokenizer = self.load()
        plan = TrainingPlan(shares=self.shares, steps=self.train_steps, rows=self.resume)
        trust = verify(
            model,
            tokenizer,
            neurons,
            with_answers(given, model, tokenizer, chat_template=self.chat_template),
            scores=scores,
            role=self.role,
            scales=self.scales,
            n_random=self.n_random,
            n_prompts=self.n_prompts,
            methods=self.methods or None,
            trainability=plan if self.trainability else False,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
            chat_template=self.chat_template,
        )
        with written_whole(self.output) as directory:
            trust.save(directory / "trust.json")
            write_atomically(directory / "trust.md", trust_markdown(trust))
            self._draw(directory, trust, neurons, scores)
        print(trust)
        print(f"Report: {self.output}")
        if not trust.better_than_random:
            raise CheckFailed(trust)
        return trust

    def _draw(self, directory: Path, trust: Trust, neurons: Neurons, scores: Scores | None) -> None:
        from neurontune_peft.report.plots import plot_curves, plot_interventions, plot_scores

        if find_spec("matplotlib") is None:
            print(
                "No pictures: matplotlib is not installed; pip install 'neurontune-peft[plot]' brings it.",
                file=sys.stderr,
            )
            return
        plot_interventions(trust).savefig(directory / "interventions.png", dpi=150)
        if trust.curves:
            plot_curves(trust).savefig(directory / "effect_by_count.png", dpi=150)
        if scores is not None:
            plot_scores(scores, role=self.role, neurons=neurons).savefig(directory / "scores_by_layer.png", dpi=150)
