"""Options of the training of scales, with where each default comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from neurontune_peft.training.config_checks import BUDGETS, check_config


def _default_bounds() -> dict[str, tuple[float, float]]:
    return {"safety": (0.0, 2.0), "utility": (-0.5, 0.0)}


@dataclass(frozen=True)
class MetaConfig:
    """
    How the scales are learnt. One task is an attack family of the train split.

    Args:
        order (`str`, *optional*, defaults to `"first"`):
            `"first"` (first-order meta-learning), `"second"` (through the inner steps), `"reptile"` (the mean gradient
            of the inner steps, arXiv 1803.02999), `"none"` (plain joint training on the same data, the control).
            *ours*; the paper says "meta-learning".
        steps (`int`, *optional*, defaults to `150`): Outer steps. *ours*
        lr (`float`, *optional*, defaults to `0.1`): Step size of Adam on the deltas, falling linearly to 0. *ours*
        inner_steps (`int`, *optional*, defaults to `5`): Steps on a family's support set. *re-implementation*
        inner_lr (`float`, *optional*, defaults to `0.02`):
            Root mean square of one inner step over all deltas; scaling the step by the gradient's size lets one value
            serve models of any size. *ours*
        support_size (`int`, *optional*, defaults to `4`): Attacked harmful prompts of the inner steps. *ours*
        query_size (`int`, *optional*, defaults to `4`): Attacked harmful prompts of the outer loss. *ours*
        plain_size (`int`, *optional*, defaults to `2`): Plain harmful prompts of the outer loss. *ours*
        benign_size (`int`, *optional*, defaults to `4`): Benign prompts of the utility term. *ours*
        borderline_size (`int`, *optional*, defaults to `8`): Borderline prompts of the utility term. *ours*
        wrapped_size (`int`, *optional*, defaults to `4`): Benign prompts inside train templates. *ours*
        support_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the support set's loss before the inner steps in the outer loss; it costs nothing, and what is
            shipped are the deltas before inner steps. *ours*
        plain_weight (`float`, *optional*, defaults to `0.5`): Weight of refusing plain harmful prompts. *ours*
        utility_weight (`float`, *optional*, defaults to `3.0`):
            Weight lambda of the utility term; 0.8 in the *re-implementation*, measured anew here.
        over_refusal_budget (`float`, *optional*):
            Most by which the share of borderline prompts that are refused may rise over the base model, 0.02 for two
            points. With any budget, budgets take the place of `utility_weight`, so set each that matters. They are
            solved by an augmented Lagrangian on smooth stand-ins, and checked on validation prompts. *ours*
        wrapped_benign_budget (`float`, *optional*): The same for benign prompts inside train templates. *ours*
        kl_budget (`float`, *optional*): Most KL(base || tuned) on answers, nats per token. *ours*
        perplexity_budget (`float`, *optional*):
            Most by which the perplexity of answers to benign prompts may rise, relative to the base model's. *ours*
        barrier (`bool`, *optional*, defaults to `False`):
            Walls instead of pressure: start within the budgets, as the identity is, and take no step that leaves them
            on validation prompts. *ours*
        barrier_weight (`float`, *optional*, defaults to `0.1`):
            Height of the walls at the start, falling linearly to almost 0. *ours*
        margin_phrases (`int`, *optional*, defaults to `2`):
            Openings of each kind in refusal margins, evenly spread over the prompt set's. *ours*
        kl_weight (`float`, *optional*, defaults to `1.0`): Weight of KL(base || tuned) in the utility term. *ours*
        nll_weight (`float`, *optional*, defaults to `0.2`): Weight of the answers' negative log-likelihood. *ours*
        first_token_weight (`float`, *optional*, defaults to `4.0`):
            Weight of an answer's first token relative to its others: it decides whether a model refuses. *ours*
        focus (`float`, *optional*, defaults to `1.0`):
            Exponent of each refusal's loss, at least 1. Above 1, prompts that are refused already count less than the
            others. *ours*; the nearest relative is focal loss (arXiv 1708.02002).
        margin_weight (`float`, *optional*, defaults to `0.0`):
            Weight of `softplus(-refusal margin)` in the safety losses. *re-implementation* of the margin; as a loss
            *ours*
        bounds (`Mapping[str, tuple[float, float]]`, *optional*):
            Role to the lowest and highest delta; deltas are projected into it after each step. A role that is not
            named is free. Defaults to `(0.0, 2.0)` for safety and `(-0.5, 0.0)` for utility. *re-implementation*
        signed (`bool`, *optional*, defaults to `False`):
            Let safety neurons also be turned down, to scale 0 at most: those whose amplification makes the model
            comply. *ours*
        attacks (`bool`, *optional*, defaults to `True`):
            `False` trains from plain harmful requests only and sees no attack template, also not around benign
            prompts (NeST, arXiv 2602.16835). That is one task, so training is joint.
        move_templates (`bool`, *optional*, defaults to `False`):
            Also put requests on the other side of each template's text, around harmful and harmless ones alike. *ours*
        tie (`str`, *optional*, defaults to `"none"`):
            `"cluster"`: neurons of a role that act alike share one delta, by k-means on their activations (NeST,
            arXiv 2602.16835).
        clusters (`int`, *optional*, defaults to `32`): Most clusters per role. *ours*
        zero_share (`float`, *optional*, defaults to `0.0`):
            Share of the adapter's own neurons that each task leaves at scale 0 in the safety losses, so that safety
            survives pruning. *ours*
        finetune_steps (`int`, *optional*, defaults to `0`):
            Steps of the inner step's size, after the inner steps, that make the support set comply, so that safety
            survives later fine-tuning. Needs meta-learning. *ours*
        nested (`bool`, *optional*, defaults to `False`):
            Draw a share of 1/8, 1/4, 1/2 or 1 of each role's ranking for the safety losses of each task, so that any
            prefix of the rankings works at load time. *paper* has count thresholds; training them so is *ours*.
        ema (`float`, *optional*, defaults to `0.0`):
            Memory of an exponential moving average of the deltas, which is validated and shipped in their place; 0
            ships the deltas. *ours*
        l1 (`float`, *optional*, defaults to `0.0`):
            Weight of an L1 penalty on the deltas; each step pulls them by `l1` times its learning rate towards 0 and
            to exactly 0, so that [`without_zeros`] can drop them. *ours*
        refusal_targets (`str`, *optional*, defaults to `"own"`):
            What harmful prompts shall be answered with: the model's `"own"` refusals of plain harmful prompts, which
            keep its voice (`"phrases"` where it refuses less than a tenth of them), or `"phrases"` of the prompt set.
            *ours*
        accumulation (`int`, *optional*, defaults to `1`):
            Tasks per step, whose gradients are averaged; under accelerate or torchrun they are dealt to the processes,
            so it must be a multiple of their number. *ours*
        validate_every (`int`, *optional*, defaults to `0`):
            Steps between two validations; the deltas that do best are kept. 0: none, the last deltas are kept; with
            budgets, a tenth of all steps. *ours*
        validation (`str`, *optional*, defaults to `"templates"`):
            What is held back: one of the `"templates"` of each family, or one whole `"family"`, by seed. *ours*
        validation_share (`float`, *optional*, defaults to `0.25`): Share of the prompts that is held back. *ours*
        validation_size (`int`, *optional*, defaults to `16`): Most validation prompts of each kind. *ours*
        checkpoint_every (`int`, *optional*, defaults to `10`): Steps between two writes of the checkpoint. *ours*
        seed (`int`, *optional*, defaults to `0`): Order of the data. The data of a step depend on seed and step only.

    Raises:
        ValueError: When a value is out of range.
    """

    order: Literal["first", "second", "none", "reptile"] = "first"
    steps: int = 150
    lr: float = 0.1
    inner_steps: int = 5
    inner_lr: float = 0.02
    support_size: int = 4
    query_size: int = 4
    plain_size: int = 2
    benign_size: int = 4
    borderline_size: int = 8
    wrapped_size: int = 4
    support_weight: float = 1.0
    plain_weight: float = 0.5
    utility_weight: float = 3.0
    over_refusal_budget: float | None = None
    wrapped_benign_budget: float | None = None
    kl_budget: float | None = None
    perplexity_budget: float | None = None
    barrier: bool = False
    barrier_weight: float = 0.1
    margin_phrases: int = 2
    kl_weight: float = 1.0
    nll_weight: float = 0.2
    first_token_weight: float = 4.0
    focus: float = 1.0
    margin_weight: float = 0.0
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=_default_bounds)
    signed: bool = False
    attacks: bool = True
    move_templates: bool = False
    tie: Literal["none", "cluster"] = "none"
    clusters: int = 32
    zero_share: float = 0.0
    finetune_steps: int = 0
    nested: bool = False
    ema: float = 0.0
    l1: float = 0.0
    refusal_targets: Literal["own", "phrases"] = "own"
    accumulation: int = 1
    validate_every: int = 0
    validation: Literal["templates", "family"] = "templates"
    validation_share: float = 0.25
    validation_size: int = 16
    checkpoint_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def validation_interval(self) -> int:
        """Steps between two validations; 0 for none."""
        budgets = any(getattr(self, name) is not None for name in BUDGETS)
        return self.validate_every or (max(1, self.steps // 10) if budgets else 0)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """The bounds of each role, with those of safety extended down to scale 0 when signed."""
        limits = dict(self.bounds)
        if self.signed and "safety" in limits:
            low, high = limits["safety"]
            limits["safety"] = (min(low, -1.0), high)
        return limits

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {**asdict(self), "bounds": {role: list(bound) for role, bound in self.bounds.items()}}


def for_flagged_requests() -> MetaConfig:
    """
    Options for scales that act on flagged requests alone, by a trigger (*ours*, chosen on the testbed).

    They may be strong and of either sign, as they cost only what is asked of the flagged requests. Static scales act
    on harmless requests too, and need the default `utility_weight`.
    """
    return MetaConfig(
        lr=0.2,
        utility_weight=0.4,
        focus=2.0,
        bounds={"safety": (0.0, 4.0), "utility": (-0.5, 0.0)},
        signed=True,
        move_templates=True,
    )
