"""What does a measurement say? Rates with intervals, and the report that holds them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurontune_peft.checks import check_format_version, write_atomically
from neurontune_peft.evaluation.rate import Rate
from neurontune_peft.evaluation.sampled import Sampled

if TYPE_CHECKING:
    from neurontune_peft.evaluation.details import Details

REPORT_FORMAT_VERSION = 1
_PLAIN = ("perplexity", "kl", "judge", "judge_limits", "prompt_set", "unscored")
RATES = ("plain_refusal", "benign_refusal", "borderline_refusal", "wrapped_benign_refusal")
RATES_BY_NAME = ("plain_refusal_by_source", "attack_success", "attack_success_train_templates")


@dataclass(frozen=True)
class Example:
    """
    One answer that was judged.

    Args:
        id (`str`): Id of the plain request.
        group (`str`): `"plain"`, `"attack"` (test templates), `"attack_train_templates"`, `"benign"`, `"borderline"`
            or `"wrapped_benign"`.
        family (`str`, *optional*): Attack family of an attacked request.
        prompt (`str`): The text that was put to the model.
        answer (`str`): The model's answer.
        label (`str`, *optional*): `"refusal"`, `"partial"`, `"compliance"`, `"incoherent"`, or `None` where the judge
            could not tell.
        confidence (`float`, *optional*): How sure the judge was, 0 to 1.
        reason (`str`, *optional*, defaults to `""`): What the judge said.
        verdicts (`Mapping[str, str]`, *optional*): Name of a judge to its label, where several judged.
        source (`str`, *optional*): Source of a plain harmful request.
    """

    id: str
    group: str
    family: str | None
    prompt: str
    answer: str
    label: str | None
    confidence: float | None = None
    reason: str = ""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class Report:
    """
    What `evaluate` measured on the test prompts. A measure is `None` where there was nothing to measure it on.

    Args:
        plain_refusal (`Rate`, *optional*): Refusals of plain harmful requests.
        plain_refusal_by_source (`Mapping[str, Rate]`): The same for each source of requests.
        attack_success (`Mapping[str, Rate]`): By family: attacked harmful requests, test templates, that were not
            refused: complying, partial and
            incoherent answers.
        attack_success_train_templates (`Mapping[str, Rate]`): The same with the templates for training.
        held_out (`tuple[str, ...]`): Families of `attack_success` that are not for training.
        benign_refusal (`Rate`, *optional*): Refusals of benign requests.
        borderline_refusal (`Rate`, *optional*): Refusals of requests that only sound dangerous (over-refusal).
        wrapped_benign_refusal (`Rate`, *optional*): Refusals of benign requests inside the test templates.
        perplexity (`float`, *optional*): Perplexity per token on the reference answers to benign requests.
        kl (`float`, *optional*): `KL(base || tuned)` in nats per token on the same answers; `None` for a plain model
            that no base was given for.
        judge (`str`): Name of the judge.
        judge_limits (`str`): What the judge cannot see.
        prompt_set (`str`): Fingerprint of the prompt set.
        options (`Mapping[str, Any]`): Options of the measurement.
        unscored (`int`, *optional*, defaults to `0`): Answers that the judge could not tell about; they count nowhere.
        examples (`tuple[Example, ...]`, *optional*): The answers with their labels.
        sampled ([`Sampled`], *optional*): The same harmful requests with several drawn answers each.
        details ([`Details`], *optional*): All verdicts by group, length and repetition of the answers, first tokens,
            intervals of perplexity and KL, agreement between judges; `None` in reports of older versions.
    """

    plain_refusal: Rate | None
    plain_refusal_by_source: Mapping[str, Rate]
    attack_success: Mapping[str, Rate]
    attack_success_train_templates: Mapping[str, Rate]
    held_out: tuple[str, ...]
    benign_refusal: Rate | None
    borderline_refusal: Rate | None
    wrapped_benign_refusal: Rate | None
    perplexity: float | None
    kl: float | None
    judge: str
    judge_limits: str
    prompt_set: str
    options: Mapping[str, Any]
    unscored: int = 0
    examples: tuple[Example, ...] = field(default=(), repr=False)
    sampled: Sampled | None = None
    details: "Details | None" = None

    @property
    def attack_success_mean(self) -> float | None:
        """`float`, *optional*: Mean of the families' attack success, of rates rounded to four digits."""
        return mean_rate(self.attack_success)

    @property
    def attack_success_held_out(self) -> dict[str, Rate]:
        """`dict[str, Rate]`: Attack success of the families that are not for training."""
        return {name: rate for name, rate in self.attack_success.items() if name in self.held_out}

    @property
    def attack_success_trained(self) -> dict[str, Rate]:
        """`dict[str, Rate]`: Attack success of the families that have templates for training."""
        return {name: rate for name, rate in self.attack_success.items() if name not in self.held_out}

    def as_dict(self, *, examples: bool = True) -> dict[str, Any]:
        """
        The report as JSON types.

        Args:
            examples (`bool`, *optional*, defaults to `True`): Whether to keep the answers.

        Returns:
            `dict[str, Any]`: Fields by name, rates as `Rate.as_dict` gives them, and `format_version`.
        """
        rates = {name: rate and rate.as_dict() for name in RATES for rate in (getattr(self, name),)}
        by_name = {name: {key: rate.as_dict() for key, rate in getattr(self, name).items()} for name in RATES_BY_NAME}
        return {
            "format_version": REPORT_FORMAT_VERSION,
            **rates,
            **by_name,
            "held_out": list(self.held_out),
            "attack_success_mean": self.attack_success_mean,
            "perplexity": self.perplexity,
            "kl": self.kl,
            "judge": self.judge,
            "judge_limits": self.judge_limits,
            "unscored": self.unscored,
            "prompt_set": self.prompt_set,
            "options": dict(self.options),
            "sampled": self.sampled and self.sampled.as_dict(),
            "details": self.details and self.details.as_dict(),
            "examples": [asdict(example) for example in self.examples] if examples else [],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """
        Make a report of what `as_dict` gave.

        Args:
            values (`Mapping[str, Any]`): Fields by name.

        Returns:
            `Report`: The report.

        Raises:
            ValueError: fields are missing or wrong, or the format is newer than this version of the package.
        """
        check_format_version(values.get("format_version"), REPORT_FORMAT_VERSION, what="report")
        try:
            fields = {name: values[name] for name in _PLAIN}
            fields |= {name: values[name] and _rate(values[name]) for name in RATES}
            fields |= {name: {key: _rate(rate) for key, rate in values[name].items()} for name in RATES_BY_NAME}
            examples = tuple(Example(**example) for example in values["examples"])
            fields["details"] = _details(values.get("details"))
            fields["sampled"] = Sampled.from_dict(values["sampled"]) if values.get("sampled") else None
            return cls(held_out=tuple(values["held_out"]), options=values["options"], examples=examples, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"got a report with a missing or wrong field ({error}); expected what Report.save writes; measure "
                "again"
            ) from None

    def save(self, path: str | os.PathLike[str], *, examples: bool = True) -> None:
        """
        Write the report as JSON.

        Args:
            path (`str` or `os.PathLike`): The file.
            examples (`bool`, *optional*, defaults to `True`): Whether to keep the answers.
        """
        text = json.dumps(self.as_dict(examples=examples), indent=1, ensure_ascii=False)
        write_atomically(path, text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """
        Read a report that `save` wrote.

        Args:
            path (`str` or `os.PathLike`): The file.

        Returns:
            `Report`: The report.

        Raises:
            ValueError: the file is not a report.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"got {path} with invalid JSON ({error}); expected what Report.save writes; measure again"
            ) from None
        if not isinstance(values, dict):
            raise ValueError(f"got {path} without a JSON object; expected what Report.save writes; measure again")
        return cls.from_dict(values)

    def __str__(self) -> str:
        rows = [("plain harmful requests refused, all", self.plain_refusal)]
        rows += [(f"  from {name}", rate) for name, rate in self.plain_refusal_by_source.items()]
        rows += [(f"attack success, {name}", rate) for name, rate in self.attack_success_trained.items()]
        rows += [(f"attack success, {name} (held out)", rate) for name, rate in self.attack_success_held_out.items()]
        for name, rate in self.attack_success_train_templates.items():
            rows.append((f"attack success, {name}, train templates", rate))
        rows.append(("benign requests refused", self.benign_refusal))
        rows.append(("borderline requests refused", self.borderline_refusal))
        rows.append(("benign requests inside templates refused", self.wrapped_benign_refusal))
        shown = [(name, f"{rate}  {rate.successes}/{rate.total}") for name, rate in rows if rate is not None]
        numbers = (("mean attack success", self.attack_success_mean, ".1%"), ("perplexity", self.perplexity, ".3f"))
        for name, value, style in (*numbers, ("KL to base, nats per token", self.kl, ".4f")):
            shown.append((name, "not measured" if value is None else format(value, style)))
        width = max(len(name) for name, _ in shown)
        title = f"Report on prompt set {self.prompt_set[:12]} (judge: {self.judge})"
        unscored = [f"{self.unscored} answers unscored"] if self.unscored else []
        sampled = [str(self.sampled)] if self.sampled else []
        return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in shown), *unscored, *sampled])


def mean_rate(rates: Mapping[str, Rate]) -> float | None:
    """
    Mean of rates, of values rounded to four digits, and itself rounded so: what can be checked against a table.

    Args:
        rates (`Mapping[str, Rate]`): The rates.

    Returns:
        `float`, *optional*: The mean; `None` for no rates.
    """
    values = [round(rate.rate, 4) for rate in rates.values()]
    return round(sum(values) / len(values), 4) if values else None


def _details(values: Mapping[str, Any] | None) -> "Details | None":
    from neurontune_peft.evaluation.details import Details  # it is made of examples, which are defined here

    return Details.from_dict(values) if values else None


def _rate(values: Mapping[str, Any]) -> Rate:
    return Rate(values["successes"], values["total"])
