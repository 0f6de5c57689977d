"""Which answers of two models belong together, and which of them does a page show?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from neurontune_peft.evaluation import Example, Report

MOST_PAIRS = 400
MOST_CHARACTERS = 1200
HARMFUL_GROUPS = ("plain", "attack", "attack_train_templates")
GROUPS = {
    "attack": "attacked harmful request",
    "attack_train_templates": "attacked harmful request, training template",
    "plain": "plain harmful request",
    "borderline": "borderline request",
    "benign": "benign request",
    "wrapped_benign": "benign request inside an attack template",
}
CHANGES = ("newly refused", "newly answered", "refused by both", "answered by both", "not scored")


@dataclass(frozen=True)
class Pair:
    """
    The answers of two models to the same text.

    Args:
        id (`str`): Id of the plain request.
        group (`str`): Kind of request, as in `Example`.
        family (`str`, *optional*): Attack family.
        prompt (`str`): The text that was put to the models.
        before (`Example`, *optional*): The first model's answer; `None` where one model was measured alone.
        after (`Example`): The second model's answer.
    """

    id: str
    group: str
    family: str | None
    prompt: str
    before: Example | None
    after: Example

    @property
    def harmful(self) -> bool:
        """`bool`: Whether the request is harmful, so that a page folds it."""
        return self.group in HARMFUL_GROUPS

    @property
    def scored(self) -> bool:
        """`bool`: Whether the judge could tell about both answers."""
        return all(example is None or example.label is not None for example in (self.before, self.after))

    @property
    def change(self) -> str:
        """`str`: One of `CHANGES`; what is no full refusal counts as an answer."""
        if not self.scored:
            return "not scored"
        second = self.after.label == "refusal"
        first = second if self.before is None else self.before.label == "refusal"
        if first == second:
            return "refused by both" if first else "answered by both"
        return "newly refused" if second else "newly answered"


def pairs_of(before: Report | None, after: Report) -> list[Pair]:
    """
    Answers of two reports to the same texts; texts that only one of them holds are left out.

    Args:
        before (`Report`, *optional*): The first report; without it, every answer stands alone.
        after (`Report`): The second report.

    Returns:
        `list[Pair]`: In the order of the second report.
    """
    if before is None:
        return [Pair(e.id, e.group, e.family, e.prompt, None, e) for e in after.examples]
    first = dict(_keyed(before.examples))
    found = [(first.get(key), example) for key, example in _keyed(after.examples)]
    return [Pair(e.id, e.group, e.family, e.prompt, base, e) for base, e in found if base is not None]


def chosen(pairs: Sequence[Pair], most: int = MOST_PAIRS) -> list[Pair]:
    """
    A sample for a page of bounded size: every group and family takes turns, changed answers first.

    Args:
        pairs (`Sequence[Pair]`): All pairs.
        most (`int`, *optional*, defaults to `400`): How many to keep.

    Returns:
        `list[Pair]`: Groups in the order of `GROUPS`, within them the order of the sample.
    """
    queues: dict[tuple[str, str | None], list[Pair]] = defaultdict(list)
    for pair in pairs:
        queues[pair.group, pair.family].append(pair)
    for queue in queues.values():
        queue.sort(key=lambda pair: CHANGES.index(pair.change) > 1)  # stable: changed ones first
    depth = max(map(len, queues.values()), default=0)
    turns = [queue[turn] for turn in range(depth) for queue in queues.values() if turn < len(queue)]
    order = list(GROUPS)
    place = {group: order.index(group) if group in order else len(order) for group in {p.group for p in turns}}
    return sorted(turns[:most], key=lambda pair: place[pair.group])


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, cut after so many characters with a note of how many are missing."""
    return text if len(text) <= most else f"{text[:most]} … [{len(text) - most} characters more]"


def _keyed(examples: Sequence[Example]) -> list[tuple[tuple[str, str | None, str, str, int], Example]]:
    """Examples by what was asked; several answers to one text are numbered."""
    seen: Counter[tuple[str, str | None, str, str]] = Counter()
    keyed = []
    for example in examples:
        key = (example.group, example.family, example.id, example.prompt)
        keyed.append(((*key, seen[key]), example))
        seen[key] += 1
    return keyed
