"""`neurontune attribute`: scores of all neurons into a file, in one process or in several, resumable."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neurontune_peft.cli.common import ModelOptions, with_answers

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class Attribute(ModelOptions):
    """
    Score every neuron of a model for the roles of an adapter.

    After an interruption of any kind, the same command goes on where it stopped. `accelerate launch -m neurontune_peft
    attribute …` divides the prompts among the processes that it starts, and so does `torchrun`.

    Example: neurontune attribute user/chat-model --output scores.safetensors

    Args:
        output: New file for the scores.
        prompts: Directory of a prompt set; the shipped one by default.
        method: gradient, gate_path, activation_path, activation_contrast, effect_size, snip, wanda, probe,
            rms_change, causal or random, or a function as MODULE:NAME.
        roles: Roles to score.
        objective: A function (model, batch) -> (B,) as MODULE:NAME, in place of the roles' own objectives.
        batch_size: Prompts per pass; "auto" halves where memory ends.
        steps: Steps of gate_path and activation_path.
        start: Where gate_path starts.
        end: Where gate_path ends.
        joint: Whether activation_path moves all sites at once.
        other: Directory or Hub name of the model that rms_change compares with.
        shortlist: Neurons per role that causal tries.
        n_prompts: Prompts of each kind.
        n_phrases: Openings of each kind in the refusal margin.
        contrast: Weight of what is subtracted, or weights per kind such as borderline=1 wrapped=0.5.
        normalize: "layer" divides the scores of each site by their root mean square.
        families: Train families to attack with; all by default.
        attacks_per_prompt: Families that each harmful prompt is attacked with; "None" takes all.
        seed: Which prompts are drawn.
        max_length: Most tokens of a prompt; the model's context by default.
        checkpoint: File for the state after each batch, deleted at the end; beside the output by default.
    """

    output: Path = field(kw_only=True)
    prompts: str | None = None
    method: str = "gradient"
    roles: tuple[str, ...] = ("safety", "utility")
    objective: str | None = None
    batch_size: Literal["auto"] | int = "auto"
    steps: int = 8
    start: float = 0.0
    end: float = 1.0
    joint: bool = True
    other: str | None = None
    shortlist: int = 64
    n_prompts: int | None = 32
    n_phrases: int | None = 4
    contrast: tuple[str, ...] = ("1.0",)
    normalize: Literal["layer"] | None = None
    families: tuple[str, ...] = ()
    attacks_per_prompt: int | None = 1
    seed: int = 0
    max_length: int | None = None
    checkpoint: Path | None = None

    def run(self) -> dict[str, Any]:
        """Score, print a summary and save; only the main process writes the file."""
        from neurontune_peft.attribution import attribute
        from neurontune_peft.prompts import PromptSet

        if self.output.exists():
            raise ValueError(
                f"got output '{self.output}', which exists; expected a new file; choose another name or delete it"
            )
        prompts = PromptSet.load(self.prompts)
        method = resolved(self.method) if ":" in self.method else self.method
        objective = None if self.objective is None else resolved(self.objective)
        contrast = parse_contrast(self.contrast)
        checkpoint = self.checkpoint or self.output.with_name(f"{self.output.name}.checkpoint")
        with joined() as state, told_how_to_go_on():
            place = self if state is None or self.device else replace(self, device=device_of(state))
            model, tokenizer = place.load()
            other = None if self.other is None else replace(place, model=self.other).load()[0]
            with nullcontext() if state is None else state.main_process_first():  # the others read its cache
                prompts = with_answers(prompts, model, tokenizer, chat_template=self.chat_template)
            scores = attribute(
                model,
                tokenizer,
                prompts,
                method=method,
                objective=objective,
                contrast=contrast,
                other=other,
                families=self.families or None,
                checkpoint=checkpoint,
                **self._passed_on(),
            )
            if state is None or state.is_main_process:
                scores.save(self.output)
                print(scores)
            return {"roles": list(scores.roles), **dict(sorted(scores.metadata.items()))}

    def _passed_on(self) -> dict[str, Any]:
        """Options that `attribute` knows by the same name and type."""
        names = (
            "roles batch_size steps start end joint shortlist n_prompts n_phrases normalize attacks_per_prompt seed"
        )
        return {name: getattr(self, name) for name in (*names.split(), "attacks_per_prompt", "chat_template")}


@contextmanager
def joined() -> Iterator[PartialState | None]:
    """The processes that `accelerate launch` or `torchrun` started; `None` for a process of its own."""
    import torch
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    yield PartialState(cpu=not torch.cuda.is_available())
    torch.distributed.destroy_process_group()


def device_of(state: PartialState) -> str:
    """The device of this process; a CPU has no number."""
    return "cpu" if state.device.type == "cpu" else str(state.device)


@contextmanager
def told_how_to_go_on() -> Iterator[None]:
    """End with one line and exit code 130, as shells do, when the user interrupts."""
    try:
        yield
    except KeyboardInterrupt as error:
        print(f"neurontune: {error or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None


def resolved(name: str) -> Callable[..., Any]:
    """
    Import a function that is named as MODULE:NAME; modules of the working directory are found, too.

    Raises:
        ValueError: When there is no such function.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"got '{name}' ({error}); expected MODULE:NAME of a function; correct the name") from error
    if not callable(found):
        raise ValueError(f"got '{name}', which is no function; expected MODULE:NAME of one; correct the name")
    return found


def parse_contrast(words: Sequence[str]) -> float | dict[str, float]:
    """
    Read `1.0`, or weights per kind such as `borderline=1 wrapped=0.5`.

    Raises:
        ValueError: Shows the words that are neither.
    """
    try:
        if len(words) == 1 and "=" not in words[0]:
            return float(words[0])
        pairs = [word.split("=", 1) for word in words]
        return {kind: float(weight) for kind, weight in pairs}
    except ValueError:
        raise ValueError(
            f"got contrast {' '.join(words)!r}; expected one number, or KIND=WEIGHT for each kind; write for example "
            "1.0, or borderline=1 wrapped=0.5"
        ) from None
