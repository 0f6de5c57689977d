"""`neurontune tune`: prompts in, a kilobyte adapter out, its effect measured. Its options; `tuning` has the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neurontune_peft.cli.common import ModelOptions
from neurontune_peft.cli.tracking import Tracker
from neurontune_peft.training.config import MetaConfig, for_flagged_requests


@dataclass(frozen=True)
class Tune(ModelOptions):
    """
    Find the neurons, learn their scales, save the adapter, and measure its effect on attacks it was not tuned on.

    A run that was interrupted goes on where it stopped when the same command is given again; what it keeps meanwhile
    stands beside the output, in a hidden directory.

    Example: neurontune tune user/chat-model --output adapter --counts safety=0.05 utility=0.05

    Args:
        output: New directory for the adapter, report.html, report.md, report.json and log.json.
        prompts: Directory of a prompt set; the shipped one by default.
        method: How neurons are scored, as in `neurontune attribute`.
        counts: Neurons per role, as a number or as a share of all neurons.
        overlap: Who keeps a neuron that both roles want, as in `neurontune select`.
        spread: Largest share of a role's neurons in one site; "auto" is a quarter, more where there are few sites.
        rounds: Rounds of scoring and training; each adds its part of the counts, scored with the scales so far.
        modulation: "dynamic" scales the requests alone that a trigger on the same neurons takes for harmful; "static"
            scales all.
        reading_share: Share of the safety neurons that is chosen for how well the trigger can read requests from them;
            the others are chosen by their scores.
        trigger_window: Number of tokens of the windows of a request over which the trigger reads means, the highest of
            which counts; even, or None for one mean over the whole request.
        false_positive_budget: Largest share of harmless requests that may trigger, on requests kept back.
        full_strength_budget: Largest share of them that may get the whole strength; it rises with the score.
        nearly_flagged: Share of the harmless train requests, those nearest to triggering, that scales are learnt from.
        strength_on: Strength of requests that trigger.
        training: How the scales are learnt.
        track: Where the losses of each step are shown: "tensorboard" (in runs/ beside the output) or "trackio".
        shares: Shares of the counts at which the adapter is measured, too.
        force: Tune a model that resists the train attacks already.
        max_new_tokens: Most tokens of an answer when measuring.
        batch_size: Requests answered at once when measuring.
    """

    output: Path = field(kw_only=True)
    prompts: str | None = None
    method: str = "gradient"
    counts: tuple[str, ...] = ("safety=0.03",)
    overlap: str = "drop"
    spread: float | Literal["auto"] | None = "auto"
    rounds: int = 1
    modulation: Literal["dynamic", "static"] = "dynamic"
    reading_share: float = 0.5
    trigger_window: int | None = 24
    false_positive_budget: float = 0.08
    full_strength_budget: float = 0.03
    nearly_flagged: float = 0.25
    strength_on: float = 1.5
    training: MetaConfig = field(default_factory=for_flagged_requests)
    track: Tracker | None = None
    shares: tuple[float, ...] = (0.125, 0.25, 0.5)
    force: bool = False
    max_new_tokens: int = 32
    batch_size: int = 64

    def run(self) -> dict[str, Any]:
        """Run every step; nothing stands in the output directory unless all went well. Returns the report."""
        from neurontune_peft.cli import tuning

        return tuning.tune(self)
