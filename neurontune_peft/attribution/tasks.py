"""Which prompts say what a role wants? A prompt set becomes, per role, examples with an objective and with weights."""

from __future__ import annotations

import random as stdlib_random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neurontune_peft.attribution.contrast import kind_weights
from neurontune_peft.objectives import Objective, RefusalMargin, TokenBatch, target_log_prob
from neurontune_peft.prompts import Prompt, PromptSet

ROLES = ("safety", "utility")
Objectives = Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]]


@dataclass(frozen=True)
class Example:
    """
    One prompt as it is scored.

    Args:
        id (`str`): What messages call it.
        kind (`str`): `"harmful"`, `"attacked"`, `"borderline"`, `"wrapped"` or `"benign"`.
        text (`str`): The request as the model sees it.
        plain (`str`, *optional*): The request without its attack, where `text` is an attacked form.
        family (`str`, *optional*): The family of the attack on a harmful request.
        response (`str`, *optional*): The answer whose tokens the objective reads.
    """

    id: str
    kind: str
    text: str
    plain: str | None = None
    family: str | None = None
    response: str | None = None

    @property
    def group(self) -> str:
        """`str`: Prompts of a group are averaged together: the kind, and for attacked ones the family, too."""
        return self.kind if self.family is None else f"{self.kind}/{self.family}"


@dataclass(frozen=True)
class Task:
    """
    What one role is scored on.

    Args:
        role (`str`): The role.
        examples (`tuple[Example, ...]`): Its prompts.
        objective (`Callable`): `(model, batch) -> (B,)`.
        weights (`Mapping[str, float]`): Kind to the weight of its prompts' mean in the role's score.
    """

    role: str
    examples: tuple[Example, ...]
    objective: Objective
    weights: Mapping[str, float]

    @property
    def sizes(self) -> dict[str, int]:
        """`dict[str, int]`: Group to the number of its examples."""
        return dict(Counter(example.group for example in self.examples))

    @property
    def families(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: Attack families of the examples, in their order."""
        return tuple(dict.fromkeys(e.family for e in self.examples if e.family is not None))


@dataclass(frozen=True)
class Draw:
    """
    Which prompts are drawn, and how they are weighted; the options of `attribute` of the same names.

    Args:
        pairs (`bool`): Every example must have a plain form; those without one are left out.
        compare (`bool`): The method compares two sides by their activations: `utility` needs the other side, too.
    """

    n_prompts: int | None = 32
    n_phrases: int | None = 4
    contrast: float | Mapping[str, float] = 1.0
    families: Sequence[str] | None = None
    attacks_per_prompt: int | None = 1
    seed: int = 0
    pairs: bool = False
    compare: bool = False

    def of(self, prompts: Sequence[Prompt], role: str) -> list[Prompt]:
        """At most `n_prompts` of the prompts, by seed, in the order of the set."""
        if self.n_prompts is None or self.n_prompts >= len(prompts):
            return list(prompts)
        places = stdlib_random.Random(f"{self.seed}-{role}-prompts").sample(range(len(prompts)), self.n_prompts)
        return [prompts[place] for place in sorted(places)]


@dataclass(frozen=True)
class CheckedObjective:
    """
    A user's objective whose result is looked at: a number that is no row's own would depend on the batch size.

    Args:
        inner (`Callable`): `(model, batch) -> (B,)`.
        rows_per_example (`int`, *optional*, defaults to `1`): Rows of the model's input per example.
    """

    inner: Callable[..., Tensor]
    rows_per_example: int = 1

    def __call__(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        values = self.inner(model, batch)
        rows = batch.input_ids.shape[0]
        if not isinstance(values, Tensor) or values.shape != (rows,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"got {shape} from the objective; expected a tensor of shape ({rows},), one number per example of the "
                "batch; do not average over the batch"
            )
        return values


def make_task(
    role: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    draw: Draw,
    *,
    objective: Objectives | None = None,
) -> Task:
    """
    Collect the examples of a role from the train prompts.

    Args:
        role (`str`): `"safety"`, `"utility"`, or a name of your own when there is an objective for it.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        prompts ([`PromptSet`]): Where the prompts come from.
        draw ([`Draw`]): How many, which and how weighted.
        objective (`Callable` or `Mapping[str, Callable]`, *optional*): Replaces the roles' own objectives.

    Raises:
        ValueError: When the role is unknown, there are no prompts for it, or an option does not fit the prompt set.
    """
    own = objective.get(role) if isinstance(objective, Mapping) else objective
    if role == "safety":
        examples = _safety_examples(prompts, draw)
    elif role == "utility":
        examples = _utility_examples(prompts, draw)
    elif own is not None:
        examples = _answered_examples(prompts, draw)
    else:
        raise ValueError(
            f"got role '{role}'; expected one of {list(ROLES)}; give other roles an objective of their own: "
            f"objective={{'{role}': function}}"
        )
    weights = kind_weights(role, Counter(example.kind for example in examples), draw.contrast)
    examples = [example for example in examples if weights.get(example.kind)]
    _check_examples(role, examples, weights, draw)
    return Task(role, tuple(examples), _objective(role, own, tokenizer, prompts, draw.n_phrases), weights)


def _objective(
    role: str, own: Callable[..., Tensor] | None, tokenizer: Any, prompts: PromptSet, n_phrases: int | None
) -> Objective:
    if own is not None:
        return CheckedObjective(own, getattr(own, "rows_per_example", 1))
    if role == "utility":
        return target_log_prob
    return RefusalMargin.from_texts(
        tokenizer,
        refusal=_spread(prompts.phrases.refusal, n_phrases),
        compliance=_spread(prompts.phrases.compliance, n_phrases),
    )


def _spread(texts: Sequence[str], count: int | None) -> list[str]:
    """`count` of the texts, evenly spaced, the first among them."""
    if count is None or count >= len(texts):
        return list(texts)
    return [texts[place * len(texts) // count] for place in range(count)]


def _families(prompts: PromptSet, draw: Draw) -> tuple[str, ...]:
    """The train families to attack with."""
    known = prompts.train_families
    if unknown := [family for family in draw.families or () if family not in known]:
        raise ValueError(
            f"got family {unknown[0]!r}; expected one of the train families {list(known)}; held-out families are for "
            "measuring only"
        )
    return known if draw.families is None else tuple(draw.families)


def _safety_examples(prompts: PromptSet, draw: Draw) -> list[Example]:
    """Harmful requests, plain and attacked, then what must be answered although it looks alike."""
    harmful = draw.of(prompts.select(kind="harmful", split="train"), "safety")
    families = _families(prompts, draw)
    examples = [] if draw.pairs else [Example(p.id, "harmful", p.prompt) for p in harmful]
    turns = len(families) if draw.attacks_per_prompt is None else min(draw.attacks_per_prompt, len(families))
    for place, family in enumerate(families):  # request i is attacked by families i, i + 1, … in turns
        part = [p for i, p in enumerate(harmful) if (place - i) % len(families) < turns]
        attackable = prompts.attackable(part, family=family, split="train")
        texts = prompts.attacked(attackable, family=family, split="train")
        examples += [
            Example(f"{p.id} attacked by {family}", "attacked", text, plain=p.prompt, family=family)
            for p, text in zip(attackable, texts, strict=True)
        ]
    if not draw.pairs:
        borderline = draw.of(prompts.select(kind="borderline", split="train"), "borderline")
        examples += [Example(p.id, "borderline", p.prompt) for p in borderline]
    benign = draw.of(prompts.select(kind="benign", split="train"), "wrapped")
    return examples + _wrapped_examples(prompts, benign, draw, kind="wrapped")


def _wrapped_examples(prompts: PromptSet, benign: Sequence[Prompt], draw: Draw, *, kind: str) -> list[Example]:
    """Benign requests inside train templates, which take turns; none when there is no template."""
    if not prompts.templates(split="train", families=draw.families):
        return []
    texts = prompts.wrapped(benign, split="train", families=draw.families)
    return [
        Example(f"{p.id} wrapped", kind, text, plain=p.prompt, response=p.response if kind == "benign" else None)
        for p, text in zip(benign, texts, strict=True)
    ]


def _utility_examples(prompts: PromptSet, draw: Draw) -> list[Example]:
    """Benign requests with their reference answers; for a comparison of activations, harmful requests beside them."""
    benign = draw.of([p for p in prompts.select(kind="benign", split="train") if p.response is not None], "utility")
    if draw.pairs:
        return _wrapped_examples(prompts, benign, draw, kind="benign")
    if not draw.compare:
        return [Example(p.id, "benign", p.prompt, response=p.response) for p in benign]
    harmful = draw.of(prompts.select(kind="harmful", split="train"), "safety")
    return [
        *(Example(p.id, "benign", p.prompt) for p in benign),
        *(Example(p.id, "harmful", p.prompt) for p in harmful),
    ]


def _answered_examples(prompts: PromptSet, draw: Draw) -> list[Example]:
    """For a role of the user's own: train requests of every kind that have an answer, with it."""
    kinds = dict.fromkeys(p.kind for p in prompts.select(split="train"))
    found: list[Example] = []
    for kind in kinds:
        answered = [p for p in prompts.select(kind=kind, split="train") if p.response is not None]
        found += [Example(p.id, kind, p.prompt, response=p.response) for p in draw.of(answered, kind)]
    return [] if draw.pairs else found


def _check_examples(role: str, examples: Sequence[Example], weights: Mapping[str, float], draw: Draw) -> None:
    if draw.pairs and not any(weights[example.kind] > 0 for example in examples):
        raise ValueError(
            f"got no prompt with an attacked form to score the role '{role}' with a method that compares plain with "
            "attacked prompts; expected attacks of the train split, with templates for benign prompts; add attacks, "
            "or use a method that needs no pairs, such as gate_path"
        )
    if not any(weights[example.kind] > 0 for example in examples):
        raise ValueError(
            f"got no prompts to score the role '{role}'; expected harmful train prompts for safety and benign train "
            "prompts with an answer for utility; add them, or fill missing answers with complete_responses"
        )
    if draw.compare and not any(weights[example.kind] < 0 for example in examples):
        raise ValueError(
            f"got nothing to compare the prompts of role '{role}' with; expected borderline or wrapped benign prompts "
            "beside harmful ones, and a contrast above 0; add such prompts"
        )
