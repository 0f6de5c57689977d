"""Which prompts does a training step see? One attack family as the task, and prompts that shall stay answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from neurontune_peft.prompts import Attack, Prompt, PromptSet
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.requests import moved

Pairs = tuple[tuple[str, str], ...]  # (prompt, answer)


@dataclass(frozen=True)
class StepData:
    """
    The texts of one outer step, as `(prompt, answer)` pairs.

    Args:
        family (`str`): The attack family of the step.
        support (`tuple`): Attacked harmful prompts with refusals, for the inner steps.
        query (`tuple`): The same with other prompts and other templates, for the outer loss.
        plain (`tuple`): Plain harmful prompts with refusals.
        utility (`tuple`): Benign, borderline and wrapped benign prompts with their answers.
        kinds (`tuple[str, ...]`, *optional*): `"benign"`, `"borderline"` or `"wrapped"` for each of `utility`.
    """

    family: str
    support: Pairs
    query: Pairs
    plain: Pairs
    utility: Pairs
    kinds: tuple[str, ...] = ()


class TaskSampler:
    """
    Draws the data of a step from the train split. They depend on seed and step only, so a run can resume at any step.

    Args:
        prompts ([`PromptSet`]): The prompt set.
        config ([`MetaConfig`]): Sizes and seed.
        refusals (`Sequence[str]`): Texts to refuse with.

    Raises:
        ValueError: When there is no train family, fewer than two harmful train prompts or no answered benign one.
    """

    def __init__(self, prompts: PromptSet, config: MetaConfig, refusals: Sequence[str]) -> None:
        self._prompts, self._config, self._refusals = prompts, config, tuple(refusals)
        self._harmful = prompts.select(kind="harmful", split="train")
        self._benign = _answered(prompts, "benign")
        self._borderline = _answered(prompts, "borderline")
        self._templates = self._with_moved(prompts.templates(split="train")) if config.attacks else []
        self.families = self._usable_families()
        if not self.families or not self._benign:
            raise ValueError(
                f"got {len(self._harmful)} harmful train prompts, {len(prompts.train_families)} train families and "
                f"{len(self._benign)} benign train prompts with an answer; expected at least two, one and one; add "
                "them, or fill missing answers with complete_responses"
            )

    def _usable_families(self) -> tuple[str, ...]:
        """Families that can attack two prompts; without attacks, plain requests are the one family."""
        if not self._config.attacks:
            return ("plain",) if len(self._harmful) >= 2 else ()
        return tuple(
            family
            for family in self._prompts.train_families
            if len(self._prompts.attackable(self._harmful, family=family, split="train")) >= 2
        )

    def draw(self, step: int) -> StepData:
        """
        The data of a step.

        Args:
            step (`int`): Number of the step, from 0. The families take turns in an order that changes every round.

        Returns:
            `StepData`: Support and query set share no harmful prompt, and no template where a family has several.
        """
        rng = random.Random(f"{self._config.seed}-{step}")
        turn, place = divmod(step, len(self.families))
        order = random.Random(f"{self._config.seed}-families-{turn}").sample(self.families, len(self.families))
        family = order[place]
        support, query = self._attacked(family, rng)
        plain = self._plain(_sample(rng, self._harmful, self._config.plain_size), rng)
        utility, kinds = self._utility(rng)
        return StepData(family, support, query, plain, utility, kinds)

    def _attacked(self, family: str, rng: random.Random) -> tuple[Pairs, Pairs]:
        plain = not self._config.attacks
        usable = self._harmful if plain else self._prompts.attackable(self._harmful, family=family, split="train")
        wanted = self._config.support_size + self._config.query_size
        drawn = _sample(rng, usable, wanted)
        cut = max(1, len(drawn) * self._config.support_size // wanted)  # small families keep the proportion
        if plain:
            return self._plain(drawn[:cut], rng), self._plain(drawn[cut:], rng)
        attacks = [a for a in self._prompts.attacks if a.family == family and a.split == "train"]
        templates = [a for a in attacks if a.template is not None]
        rng.shuffle(templates)
        half = len(templates) // 2
        own = {a.prompt_id: a for a in attacks if a.template is None}
        # A moved template says what it said before, so it stays on its own side.
        support, query = self._with_moved(templates[:half] or templates), self._with_moved(templates[half:])
        if self._config.move_templates:  # the first of each would be drawn always, the moved ones seldom
            rng.shuffle(support)
            rng.shuffle(query)
        return self._refused(drawn[:cut], support, own, rng), self._refused(drawn[cut:], query, own, rng)

    def _with_moved(self, templates: Sequence[Attack]) -> list[Attack]:
        if not self._config.move_templates:
            return list(templates)
        return [
            each
            for attack in templates
            for each in (attack, *(replace(attack, template=text) for text in moved(str(attack.template))))
        ]

    def _refused(
        self, harmful: Sequence[Prompt], templates: Sequence[Attack], own: dict[str | None, Attack], rng: random.Random
    ) -> Pairs:
        chosen = [own.get(p.id) or templates[i % len(templates)] for i, p in enumerate(harmful)]
        return tuple(
            (attack.apply(p.prompt), rng.choice(self._refusals)) for p, attack in zip(harmful, chosen, strict=True)
        )

    def _plain(self, harmful: Sequence[Prompt], rng: random.Random) -> Pairs:
        return tuple((prompt.prompt, rng.choice(self._refusals)) for prompt in harmful)

    def _utility(self, rng: random.Random) -> tuple[Pairs, tuple[str, ...]]:
        config = self._config
        benign = _sample(rng, self._benign, config.benign_size)
        borderline = _sample(rng, self._borderline, config.borderline_size)
        pairs = [(p.prompt, str(p.response)) for p in (*benign, *borderline)]
        kinds = ["benign"] * len(benign) + ["borderline"] * len(borderline)
        if self._templates:
            inside = _sample(rng, self._benign, config.wrapped_size)
            pairs += [(rng.choice(self._templates).apply(p.prompt), str(p.response)) for p in inside]
            kinds += ["wrapped"] * len(inside)
        return tuple(pairs), tuple(kinds)


def _answered(prompts: PromptSet, kind: str) -> tuple[Prompt, ...]:
    return tuple(p for p in prompts.select(kind=kind, split="train") if p.response is not None)


def _sample(rng: random.Random, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    return rng.sample(prompts, min(count, len(prompts)))
