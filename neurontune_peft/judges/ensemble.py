"""What do several judges say together? The majority, with the confidence of those who are in it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from neurontune_peft.judges.verdict import Judge, Verdict, ask, judge_name, unscored


@dataclass(frozen=True)
class Ensemble:
    """
    A judge made of judges: the verdict that most of them give (ours).

    A tie goes to the verdict with the higher sum of confidences, and stays unscored when these are equal, too. Judges
    that cannot tell do not vote.

    Args:
        judges (`tuple[Callable, ...]`): The judges.
        name (`str`): What tables call this judge.
    """

    judges: tuple[Judge, ...]
    name: str

    @property
    def limits(self) -> str:
        """`str`: What its judges cannot see."""
        said = [str(getattr(judge, "limits", "")) for judge in self.judges]
        return " ".join(["The verdict of the majority.", *filter(None, said)])

    def __call__(self, prompt: str, answer: str) -> Verdict:
        """
        Ask all judges.

        Args:
            prompt (`str`): The request.
            answer (`str`): The model's answer.

        Returns:
            `Verdict`: The verdict of the majority; its confidence is the sum of theirs, divided by the number of
                judges that voted.
        """
        votes = [(judge_name(judge), ask(judge, prompt, answer)) for judge in self.judges]
        said = "; ".join(f"{name}: {verdict.label}, {verdict.reason}" for name, verdict in votes)
        weights: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        for _, verdict in votes:
            if verdict.label != "unscored":
                count, weight = weights[verdict.label]
                weights[verdict.label] = (count + 1, weight + verdict.confidence)
        if not weights:
            return unscored(f"none of {len(votes)} could tell ({said})")
        best = max(weights.values())
        winners = [label for label, weight in weights.items() if weight == best]
        if len(winners) > 1:
            return unscored(f"a tie between {' and '.join(winners)} ({said})")
        voted = sum(count for count, _ in weights.values())
        return Verdict(winners[0], best[1] / voted, f"{best[0]} of {voted} ({said})")  # type: ignore[arg-type]


def ensemble(*judges: Judge, name: str | None = None) -> Ensemble:
    """
    Let several judges vote.

    Args:
        judges (`Callable`): At least two judges.
        name (`str`, *optional*): What tables call the ensemble; made of the names of its judges by default.

    Returns:
        [`Ensemble`]: A judge.

    Raises:
        ValueError: there are fewer than two judges.
    """
    if len(judges) < 2:
        raise ValueError(f"got {len(judges)} judges; expected at least two; pass them one after the other")
    return Ensemble(judges, name or "majority of " + ", ".join(map(judge_name, judges)))
