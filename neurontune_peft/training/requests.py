"""Which requests does a trigger learn from? Harmful and harmless ones in the same wrappings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from neurontune_peft.prompts import Prompt, PromptSet
from neurontune_peft.prompts.records import PLACEHOLDER
from neurontune_peft.training.frames import FRAMES
from neurontune_peft.training.worded import worded

T = TypeVar("T")
WORDED = "worded"  # group of harmless tasks in the wording of harmful requests
# Of the requests that may be drawn, one in so many stands in each template whose text was moved.
MOVED_PART = 5
FOLDS = 4
STRIDE = 17  # prime to the number of frames, so that few requests meet all kinds
FRAMES_PER_REQUEST = 1  # in turns; with more, text behind a request looks harmless, and attacks there are missed


@dataclass(frozen=True)
class Example:
    """
    One text that a trigger is fitted and measured on.

    Args:
        text (`str`): The request in its wrapping.
        harmful (`bool`): Whether the trigger shall fire.
        group (`str`): `"plain"`, `"attacked"`, `"benign"`, `"borderline"`, `"wrapped"`, `"framed"` or `"worded"`.
        source (`str`, *optional*): Attack family or kind of frame that it is wrapped in.
        fold (`int`): Part of the requests that it belongs to, the same in all wrappings; kept back together.
    """

    text: str
    harmful: bool
    group: str
    source: str | None
    fold: int

    @property
    def chooses_readers(self) -> bool:
        """Whether it is of the half of the requests that chooses what a trigger reads; the other half measures it."""
        return self.fold % 2 == 0


def examples_of(
    prompts: PromptSet, *, folds: int, seed: int, most: int, move: bool = True, frames: int = FRAMES_PER_REQUEST
) -> list[Example]:
    """
    Examples from the train split.

    Args:
        prompts ([`PromptSet`]): The prompt set.
        folds (`int`): Into how many parts the requests are dealt.
        seed (`int`): Decides which part.
        most (`int`): Most requests per kind.
        move (`bool`, *optional*, defaults to `True`): Add templates with their text moved.
        frames (`int`, *optional*, defaults to `1`): Frames that each request stands in.

    Returns:
        `list[Example]`: Harmful requests plain, attacked by each family and framed; benign and borderline ones plain,
        wrapped in each family's templates and framed; some of both in these templates with their text moved; and
        harmless tasks in the wording of harmful requests, as many as there are of these (288 at most).
    """
    kinds = {
        kind: _drawn(prompts.select(kind=kind, split="train"), seed=seed, most=most)
        for kind in ("harmful", "benign", "borderline")
    }
    tasks = _drawn(worded(), seed=seed, most=len(kinds["harmful"]))
    found: list[Example] = []
    for fold in range(folds):
        found += [Example(text, False, WORDED, None, fold) for text in tasks[fold::folds]]
        parts = {kind: drawn[fold::folds] for kind, drawn in kinds.items()}
        harmless = [*parts["benign"], *parts["borderline"]]
        for kind, group in (("harmful", "plain"), ("benign", "benign"), ("borderline", "borderline")):
            found += [Example(p.prompt, kind == "harmful", group, None, fold) for p in parts[kind]]
        for family in prompts.train_families:
            attackable = prompts.attackable(parts["harmful"], family=family, split="train")
            attacked = prompts.attacked(attackable, family=family, split="train")
            found += [Example(text, True, "attacked", family, fold) for text in attacked]
            if prompts.templates(split="train", families=[family]):
                wrapped = prompts.wrapped(harmless, split="train", families=[family])
                found += [Example(text, False, "wrapped", family, fold) for text in wrapped]
            templates = [a.template for a in prompts.templates(split="train", families=[family]) if a.template]
            for template in dict.fromkeys(other for each in templates if move for other in moved(each)):
                for harmful, group, pool in ((True, "attacked", attackable), (False, "wrapped", harmless)):
                    some = _drawn(pool, seed=f"{seed}-{template}", most=max(1, len(pool) // MOVED_PART))
                    texts = [template.replace(PLACEHOLDER, p.prompt) for p in some]
                    found += [Example(text, harmful, group, family, fold) for text in texts]
        for harmful, pool in ((True, parts["harmful"]), (False, harmless)):
            found += _framed(pool, harmful, fold, frames=frames, first=fold * len(pool))
    return found


def _framed(requests: Sequence[Prompt], harmful: bool, fold: int, *, frames: int, first: int) -> list[Example]:
    """Each request in some of the frames, in turns that go on from one fold to the next."""
    texts = [(kind, frame) for kind, own in FRAMES.items() for frame in own]
    found = []
    for place, prompt in enumerate(requests, start=first):
        for turn in range(frames):
            kind, frame = texts[(place * STRIDE + turn * len(texts) // frames) % len(texts)]
            text = frame.replace(PLACEHOLDER, prompt.prompt)
            found.append(Example(text, harmful, "framed", f"frame {kind}", fold))
    return found


def moved(template: str) -> list[str]:
    """
    A template with its text on the other side of the request (`ours`): what surrounds requests varies more than where.

    Args:
        template (`str`): With the placeholder of a request.

    Returns:
        `list[str]`: Everything behind the request, where some of it stood before; everything before it, likewise.
    """
    before, _, behind = template.partition(PLACEHOLDER)
    before, behind = before.strip(), behind.strip()
    found = [f"{PLACEHOLDER}\n{f'{behind} {before}'.strip()}"] if before else []
    return found + ([f"{f'{before} {behind}'.strip()} {PLACEHOLDER}"] if behind else [])


def _drawn(requests: Sequence[T], *, seed: int | str, most: int) -> list[T]:
    return random.Random(f"{seed}-trigger").sample(list(requests), min(len(requests), most))
