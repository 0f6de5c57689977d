"""Sweep and certify: what the dials cost, and which setting is shown to keep its limits."""

import json
import math
from dataclasses import replace

import pytest
import torch
from adapters import randomize
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import PeftModel
from training_helpers import peft_model

from neurontune_peft.cli import main
from neurontune_peft.evaluation.decide import Frontier, Measured, certify, sweep
from neurontune_peft.evaluation.decide.certify import violations
from neurontune_peft.evaluation.decide.settings import grid, in_order, path
from neurontune_peft.evaluation.decide.testing import Count, fixed_sequence, needed, tail
from neurontune_peft.judges import Verdict
from neurontune_peft.prompts import Prompt
from neurontune_peft.tuner.presets import Setting

QUICK = {"max_new_tokens": 4, "strengths": (0.5, 1.0), "counts": (0.5, 1.0)}


def odd_judge(prompt, answer):
    return Verdict("refusal" if len(answer) % 2 else "compliance", 1.0, "odd length")


def model():
    made = peft_model().eval()
    randomize(made)
    return made


def swept(**options):
    return sweep(model(), tiny_tokenizer(), tiny_prompt_set(), judge=odd_judge, **{**QUICK, **options})


def measured(strength, *, attacks=(), refused=None, perplexity=10.0):
    """A point with such outcomes; `refused` are those of borderline requests."""
    outcomes = {"attack_held_out": {f"role\t{i}": hit for i, hit in enumerate(attacks)}}
    outcomes["over_refusal"] = {str(i): hit for i, hit in enumerate(refused or [])}
    return Measured(strength, {"safety": 4}, None, outcomes=outcomes, perplexity=perplexity)


# The sweep


def test_a_sweep_starts_with_the_base_model_and_goes_from_mild_to_strong():
    frontier = swept()
    assert [(p.strength, p.counts["safety"]) for p in frontier.points] == [
        (0.0, 24), (0.5, 12), (0.5, 24), (1.0, 12), (1.0, 24)
    ]  # fmt: skip
    base = sweep(
        model(), tiny_tokenizer(), tiny_prompt_set(), judge=odd_judge, max_new_tokens=4, strengths=(), counts=()
    )
    assert base.points[0] == frontier.points[0]
    assert frontier.points[0].kl == 0.0
    assert frontier.points[-1].kl > 0.0


def test_a_point_of_a_sweep_equals_an_evaluation_with_the_dials_turned():
    from neurontune_peft import evaluate

    tuned, tokenizer, prompts = model(), tiny_tokenizer(), tiny_prompt_set()
    point = swept().points[1]
    tuned.set_strength(0.5)
    tuned.set_neuron_counts(safety=12, utility=6)
    report = evaluate(tuned, tokenizer, prompts, judge=odd_judge, max_new_tokens=4)
    rates = point.rates()
    assert rates["over_refusal"]["value"] == round(report.borderline_refusal.rate, 4)
    assert rates["wrapped_benign_refusal"]["n"] == report.wrapped_benign_refusal.total
    total = sum(rate.successes for rate in report.attack_success.values())
    assert sum(point.attacks.values()) == total
    assert point.perplexity == report.perplexity


def test_a_sweep_gives_the_dials_back_and_is_resumed_from_its_journal(tmp_path):
    tuned = model()
    tuned.set_strength(0.3)
    options = {"judge": odd_judge, **QUICK, "checkpoint": tmp_path / "rows.jsonl"}
    first = sweep(tuned, tiny_tokenizer(), tiny_prompt_set(), **options)
    assert {
        dial.strength for x in tuned.neuron_layers("default").values() for dial in x.dials["default"].values()
    } == {0.3}
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:10])  # killed while writing

    calls = []
    options["judge"] = named(lambda p, a: calls.append(p) or odd_judge(p, a), "odd_judge")
    assert sweep(tuned, tiny_tokenizer(), tiny_prompt_set(), **options) == first
    assert len(calls) == 3 * 22  # of five settings two were done; each has 22 answers without train templates

    randomize(tuned, seed=5)
    with pytest.raises(ValueError, match="started with another model, prompt set or options"):
        sweep(tuned, tiny_tokenizer(), tiny_prompt_set(), **options)


def named(function, name):
    function.__name__ = name
    return function


def test_thresholds_are_a_dial_of_adapters_with_a_trigger_only():
    config = peft_model().peft_config["default"]
    assert {setting.threshold for setting in grid(config)} == {None}
    with pytest.raises(ValueError, match=r"got dial 'threshold'; expected one of \['strength', 'counts'\]"):
        path(config, "threshold")
    dynamic = replace(config, modulation="dynamic", trigger_threshold=0.5)
    assert {setting.threshold for setting in grid(dynamic)} == {0.5, 2.5, 1.5, -0.5, -1.5}
    thresholds = [setting.threshold for setting in path(dynamic)]
    assert thresholds == sorted(thresholds, reverse=True)
    with pytest.raises(ValueError, match="which has no trigger"):
        sweep(peft_model(), tiny_tokenizer(), tiny_prompt_set(), thresholds=(0.5,))


def test_pareto_points_are_those_that_no_other_beats():
    points = [
        measured(0.0, attacks=[1, 1, 1, 1], refused=[0, 0, 0, 0]),
        measured(0.5, attacks=[1, 1, 0, 0], refused=[0, 0, 0, 1]),
        measured(0.7, attacks=[1, 1, 0, 0], refused=[0, 0, 1, 1]),  # costs more than 0.5 and protects as much
        measured(1.0, attacks=[0, 0, 0, 0], refused=[1, 1, 1, 1]),
    ]
    assert Frontier(tuple(points), judge="j", prompt_set="p").pareto == (True, True, False, True)


def test_presets_are_the_strongest_protection_within_their_limits():
    borderline = [False] * 100
    points = [measured(0.0, attacks=[1] * 10, refused=borderline)]
    for strength, successes, refused in ((0.5, 8, 2), (0.6, 8, 2), (0.7, 6, 5), (0.9, 3, 15), (1.5, 0, 40)):
        attacks = [i < successes for i in range(10)]
        points.append(measured(strength, attacks=attacks, refused=[i < refused for i in range(100)]))
    frontier = Frontier(tuple(points), judge="j", prompt_set="p")
    assert frontier.presets == {"security": 4, "balanced": 3, "utility": 1}
    assert frontier.preset_settings()["balanced"]["strength"] == 0.7
    assert frontier.preset_settings()["balanced"]["measured"]["attack_success"] == 0.6
    assert json.loads(json.dumps(frontier.as_dict()))["presets"] == frontier.presets
    assert "0.7" in str(frontier)


def test_the_order_of_settings_depends_on_the_dials_only():
    mild, strong = measured(0.5, refused=[1]), measured(1.0, refused=[0])
    assert [s.strength for s in in_order([strong, mild])] == [0.5, 1.0]
    low, high = Setting(1.0, {"safety": 4}, -1.0), Setting(1.0, {"safety": 4}, 2.0)
    assert in_order([low, high]) == (high, low)


# The tests


@pytest.mark.parametrize(("k", "n", "p"), [(0, 59, 0.05), (3, 50, 0.1), (200, 2000, 0.11), (5, 5, 0.2), (1, 7, 0.9)])
def test_p_values_are_binomial_tails(k, n, p):
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert tail(k, n, p) == pytest.approx(exact, rel=1e-9)


def test_needed_prompts_are_the_fewest_that_suffice():
    assert needed(0.05, confidence=0.95) == 59  # 0.95 ** 59 < 0.05 < 0.95 ** 58
    number = needed(0.05, confidence=0.95, rate=0.02)
    assert tail(math.ceil(0.02 * number), number, 0.05) <= 0.05
    assert needed(0.05, confidence=0.95, rate=0.05) is None


def draws(risks, *, n, generator):
    """Violations at each setting of n requests; a request that violates at a mild setting does at stronger ones."""
    uniform = torch.rand(n, generator=generator)
    return [{"limit": Count(int((uniform < risk).sum()), n)} for risk in risks]


@pytest.mark.parametrize("n", [60, 200, 800])
def test_the_guarantee_holds_over_1000_draws_and_is_not_vacuous(n):
    risks = [0.001, 0.005, 0.01, 0.02, 0.03, 0.045, 0.0501, 0.07, 0.1, 0.3]
    generator, limits = torch.Generator().manual_seed(0), {"limit": 0.05}
    chosen = []
    for _ in range(1000):
        tested = list(fixed_sequence(draws(risks, n=n, generator=generator), limits, confidence=0.95))
        chosen.append(sum(result.held for result in tested) - 1)
    violated = sum(place >= 0 and risks[place] > 0.05 for place in chosen) / 1000
    assert violated <= 0.05
    found = {place: chosen.count(place) / 1000 for place in set(chosen)}
    certified = sum(share for place, share in found.items() if place >= 0)
    assert certified > {60: 0.85, 200: 0.99, 800: 0.999}[n]
    at_least_2_percent = sum(share for place, share in found.items() if place >= 3)
    assert at_least_2_percent > {60: 0.2, 200: 0.4, 800: 0.99}[n]


def test_many_settings_that_violate_do_not_get_many_chances():
    """Each setting is measured on prompts of its own here, so that only the stop at the first failure protects."""
    generator, wrong = torch.Generator().manual_seed(2), 0
    for _ in range(1000):
        sequence = [draws([risk], n=200, generator=generator)[0] for risk in (0.001, *[0.0501] * 20)]
        held = [result.held for result in fixed_sequence(sequence, {"limit": 0.05}, confidence=0.95)]
        wrong += any(held[1:])
    assert wrong <= 50


def test_several_limits_hold_at_once_over_1000_draws():
    pairs = [(0.01, 0.001), (0.03, 0.01), (0.04, 0.101), (0.051, 0.11), (0.2, 0.3)]
    generator, limits = torch.Generator().manual_seed(1), {"a": 0.05, "b": 0.1}
    wrong = right = 0
    for _ in range(1000):
        first, second = (draws(risks, n=150, generator=generator) for risks in zip(*pairs, strict=True))
        sequence = [{"a": a["limit"], "b": b["limit"]} for a, b in zip(first, second, strict=True)]
        tested = list(fixed_sequence(sequence, limits, confidence=0.95))
        held = sum(result.held for result in tested)
        wrong += held >= 3
        right += held >= 1
    assert wrong <= 50
    assert right > 800


def test_nothing_after_the_first_failed_setting_is_tested():
    sequence = [{"a": Count(0, 100)}, {"a": Count(50, 100)}, {"a": Count(0, 100)}]
    tested = list(fixed_sequence(iter(sequence), {"a": 0.05}, confidence=0.95))
    assert [result.held for result in tested] == [True, False]


# Certificates


def many(kind, count, *, split="test"):
    return tuple(Prompt(f"{kind}-{split}-{i}", f"{kind} {split} request {i}", kind, None, split) for i in range(count))


def prompt_set(borderline=60, benign=60):
    tiny = tiny_prompt_set()
    kept = tuple(p for p in tiny.prompts if p.split == "train" or p.kind == "harmful")
    return replace(tiny, prompts=kept + many("borderline", borderline) + many("benign", benign))


def frontier_of(rates, *, prompts, n=400, unscored=0):
    points = [measured(0.0, refused=[False] * n)]
    for place, rate in enumerate(rates):
        point = measured(0.5 + place / 4, refused=[i < rate * n for i in range(n)])
        points.append(replace(point, unscored={"over_refusal": tuple(f"u{i}" for i in range(unscored))}))
    return Frontier(tuple(points), judge="j", prompt_set=prompts.fingerprint)


def test_the_strongest_setting_whose_limit_is_shown_is_certified():
    prompts = prompt_set()
    certificate = certify(frontier_of([0.0, 0.01, 0.02, 0.2, 0.0], prompts=prompts), prompts, {"over_refusal": 0.05})
    assert certificate.setting == Setting(1.0, {"safety": 4})
    assert len(certificate.tested) == 4
    assert certificate.n == {"over_refusal": 400}
    assert certificate.as_dict()["p_values"][-1] > 0.05
    assert "Nothing is promised for new kinds of requests" in certificate.statement


def test_none_is_certified_where_the_mildest_setting_fails_and_the_prompts_needed_are_said():
    prompts = prompt_set()
    certificate = certify(frontier_of([0.02], prompts=prompts, n=50), prompts, {"over_refusal": 0.05})
    assert certificate.setting is None
    assert certificate.needed == {"over_refusal": 59}
    assert certificate.needed_at_observed["over_refusal"] > 100
    assert "No setting can be certified" in certificate.statement
    with pytest.raises(ValueError, match="got nothing certified"):
        certificate.preset()


def test_answers_that_the_judge_cannot_tell_count_as_violations():
    prompts = prompt_set()
    assert certify(frontier_of([0.0], prompts=prompts), prompts, {"over_refusal": 0.05}).setting is not None
    certificate = certify(frontier_of([0.0], prompts=prompts, unscored=40), prompts, {"over_refusal": 0.05})
    assert certificate.setting is None
    assert certificate.tested[0][1].counts["over_refusal"] == Count(40, 440)


def test_limits_on_new_refusals_count_what_the_base_model_answers():
    base = measured(0.0, refused=[True, True, False, False])
    point = measured(1.0, refused=[True, False, True, False])
    assert violations(point, base, ["new_over_refusal"]) == {"new_over_refusal": Count(1, 4)}
    assert violations(point, base, ["over_refusal"]) == {"over_refusal": Count(2, 4)}


def test_a_model_is_measured_only_as_far_as_the_search_goes():
    calls = []
    tuned = model()

    def judge(prompt, answer):
        calls.append(tuned.neuron_layers("default").popitem()[1].dials["default"]["safety"].strength)
        return Verdict("refusal" if calls[-1] >= 0.5 else "compliance", 1.0, "")

    certificate = certify(
        tuned, prompt_set(), {"over_refusal": 0.05}, tokenizer=tiny_tokenizer(), judge=judge, max_new_tokens=1
    )
    assert certificate.setting.strength == 0.375
    assert set(calls) == {0.125, 0.25, 0.375, 0.5}
    assert len(calls) == 4 * 60


@pytest.mark.parametrize(
    ("limits", "confidence", "message"),
    [
        ({"over_refusal": 0.0}, 0.95, "got limit over_refusal=0.0; expected a share above 0 and below 1"),
        ({"over_refusal": 1.5}, 0.95, "got limit over_refusal=1.5"),
        ({"over_refusal": float("nan")}, 0.95, "got limit over_refusal=nan"),
        ({"attack_success": 0.1}, 0.95, "got limit 'attack_success'; expected one of"),
        ({}, 0.95, "got no limits"),
        ({"over_refusal": 0.05}, 1.0, "got confidence=1.0"),
    ],
)
def test_impossible_limits_are_refused(limits, confidence, message):
    prompts = prompt_set()
    with pytest.raises(ValueError, match=message):
        certify(frontier_of([0.0], prompts=prompts), prompts, limits, confidence=confidence)


def test_requests_that_tuning_has_seen_cannot_certify():
    prompts = prompt_set()
    frontier = frontier_of([0.0], prompts=prompts)
    trained = replace(prompts, prompts=tuple(replace(p, split="train") for p in prompts.prompts))
    with pytest.raises(ValueError, match=r"certifying requests .* that tuning has seen"):
        certify(frontier, prompts, tuned_on=trained)
    with pytest.raises(ValueError, match="got a prompt set without test prompts"):
        certify(frontier, trained)
    with pytest.raises(ValueError, match="got limit 'over_refusal' and no borderline prompts"):
        certify(frontier, prompt_set(borderline=0))
    with pytest.raises(ValueError, match="got a frontier measured on prompt set"):
        certify(frontier, prompt_set(borderline=61))


# The command line


@pytest.fixture
def directories(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    prompt_set().save(tmp_path / "prompts")
    model().save_pretrained(tmp_path / "adapter")
    common = ["--adapter", str(tmp_path / "adapter"), "--prompts", str(tmp_path / "prompts")]
    return tmp_path, [str(tmp_path / "model"), *common, "--max-new-tokens", "2"]


def test_the_command_sweep_writes_the_frontier_and_presets(directories, capsys):
    root, common = directories
    words = ["sweep", *common, "--strengths", "1.0", "--counts", "0.5", "safety=3,utility=0", "--max-tests", "2"]
    assert main([*words, "--output", str(root / "out"), "--write-presets"]) == 0
    values = json.loads((root / "out" / "frontier.json").read_text())
    assert [point["counts"] for point in values["points"]] == [
        {"safety": 24, "utility": 12}, {"safety": 3, "utility": 0}, {"safety": 12, "utility": 6}
    ]  # fmt: skip
    assert set(values["points"][0]["attack_success"]) == {"value", "low", "high", "n"}
    assert "| setting | attack success |" in capsys.readouterr().out
    tuned = PeftModel.from_pretrained(tiny_llama(), root / "adapter")
    tuned.use_preset("balanced")
    assert set(tuned.presets) == {"security", "balanced", "utility"}


def test_the_command_certify_writes_a_certificate_and_the_preset(directories, capsys):
    root, common = directories
    words = ["certify", *common, "--limit", "over_refusal=0.05", "--limit", "new_benign_refusal=0.05"]
    with pytest.warns(UserWarning, match="got an adapter tuned on prompt set"):
        assert main([*words, "--output", str(root / "c.json"), "--write"]) == 0
    values = json.loads((root / "c.json").read_text())
    assert values["n"] == {"over_refusal": 60, "new_benign_refusal": 60}
    tuned = PeftModel.from_pretrained(tiny_llama(), root / "adapter")
    assert tuned.presets["certified"].as_dict() == values["setting"]
    assert main(["certify", *common, "--limit", "over_refusal=2"]) == 2
    assert "got limit over_refusal=2.0" in capsys.readouterr().err


def test_the_command_certify_ends_with_1_when_nothing_can_be_certified(directories):
    root, common = directories
    words = ["certify", *common, "--limit", "over_refusal=0.01", "--output", str(root / "c.json")]
    with pytest.warns(UserWarning, match="tuned on"), pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    assert json.loads((root / "c.json").read_text())["needed"] == {"over_refusal": 299}
