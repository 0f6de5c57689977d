"""Reports for tests: two small measurements with answers, and every part that a page can have."""

from dataclasses import replace

from neurontune_peft.evaluation import Example, Rate, Report
from neurontune_peft.report import Document

HELD = "I'm sorry, but I can't help with that."
GROUPS = (("plain", None), ("attack", "prefix"), ("attack", "role"), ("borderline", None), ("benign", None))


def measured(refused: dict[tuple[str, str | None], int], *, count: int = 10, **fields: object) -> Report:
    """A report with `count` answers to each group and family, of which so many are refusals."""
    examples = [
        Example(
            id=f"{group}-{i}",
            group=group,
            family=family,
            prompt=f"Request {i} of {group} {family or ''}".strip(),
            answer=HELD if i < refused.get((group, family), 0) else f"Sure, here is answer {i} to {group}.",
            label="refusal" if i < refused.get((group, family), 0) else "compliance",
        )
        for group, family in GROUPS
        for i in range(count)
    ]

    def rate(group: str, family: str | None = None, *, attack: bool = False) -> Rate:
        hits = refused.get((group, family), 0)
        return Rate(count - hits if attack else hits, count)

    report = Report(
        plain_refusal=rate("plain"),
        plain_refusal_by_source={"a": rate("plain")},
        attack_success={name: rate("attack", name, attack=True) for name in ("prefix", "role")},
        attack_success_train_templates={"prefix": rate("attack", "prefix", attack=True)},
        held_out=("role",),
        benign_refusal=rate("benign"),
        borderline_refusal=rate("borderline"),
        wrapped_benign_refusal=None,
        perplexity=28.0,
        kl=None,
        judge="format only",
        judge_limits="It sees the opening only.",
        prompt_set="ab" * 32,
        options={"max_new_tokens": 32, "batch_size": 64, "chat_template": None},
        examples=tuple(examples),
    )
    return replace(report, **fields)


BASE = measured({("plain", None): 9, ("attack", "prefix"): 1, ("attack", "role"): 2, ("borderline", None): 1})
TUNED = measured(
    {("plain", None): 9, ("attack", "prefix"): 9, ("attack", "role"): 7, ("borderline", None): 2}, kl=0.0123
)


def rate(value: float, n: int = 80) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05), "n": n}


def full_document() -> Document:
    """A document with every part."""
    points = [
        {
            "strength": s,
            "counts": {"safety": 6},
            "threshold": 1.5,
            "pareto": s != 0.5,
            "perplexity": 28 + s,
            "kl": s / 10,
        }
        | {"attack_success": rate(0.9 - s / 2), "over_refusal": rate(0.1 + s / 20)}
        | {"benign_refusal": rate(0.02), "wrapped_benign_refusal": None}
        for s in (0.0, 0.5, 1.0)
    ]
    role = {"count": 3, "mean": 1.4, "low": 0.9, "high": 2.0}
    sites = [
        {"site": f"model.layers.{i}.mlp.down_proj", "layer": str(i), "width": 48, "roles": {"safety": role}}
        for i in range(2)
    ]
    neuron = {"site": sites[0]["site"], "index": 7, "role": "safety", "rank": 0, "scale": 2.0}
    return Document(
        before=BASE,
        after=TUNED,
        counts={"0.5": replace(TUNED, examples=())},
        adapter={
            "bytes": 1234,
            "base_model": "user/model",
            "base_model_fingerprint": "cd" * 32,
            "neurons": 6,
            "of": 96,
            "counts": {"safety": 6},
            "modulation": {"kind": "dynamic", "strength_on": 1.5, "strength_off": 0.0, "threshold": 1.37},
            "sites": sites,
            "strongest": [neuron],
        },
        frontier={"points": points, "presets": {"security": 2, "utility": 0}},
        certificate={
            "setting": {"strength": 1.0, "counts": {"safety": 6}, "threshold": 1.5},
            "confidence": 0.95,
            "limits": {"over_refusal": 0.2},
            "n": {"over_refusal": 80},
            "needed": {"over_refusal": 59},
            "statement": "Strength 1 is certified.",
        },
        stress={
            "rows": [
                {"name": "zeroed", "what": "strongest tenth", "measure": "attack success", "base": 0.8, "tuned": 0.2}
                | {"stressed": 0.3, "low": 0.2, "high": 0.4, "held": True, "note": ""},
                {"name": "fine-tune", "what": "20 steps", "measure": "attack success", "base": 0.8, "tuned": 0.2}
                | {"stressed": 0.7, "low": 0.6, "high": 0.8, "held": False, "note": "benign data"},
            ]
        },
        provenance={"model": "user/model", "seed": 0, "versions": {"torch": "2.13.0"}},
        command="neurontune tune user/model --output adapter",
        details={"Training": "loss 2.0 -> 1.0"},
    )
