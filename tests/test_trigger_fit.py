"""A trigger is fitted on the train split, judged on families it never saw, and calibrated on requests kept back."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import get_peft_model
from training_helpers import SMALL

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites, fit_trigger, meta_train, nearly_flagged
from neurontune_peft.prompts import Attack, Prompt, PromptSet
from neurontune_peft.prompts.chat import format_prompt, generation_suffix, turn_opening
from neurontune_peft.training.calibration import calibrated, cross_fitted
from neurontune_peft.training.features import Features, trigger_features
from neurontune_peft.training.flagged import trigger_aside
from neurontune_peft.training.logistic import Linear, area_under_curve, fit_logistic
from neurontune_peft.training.requests import examples_of, moved
from neurontune_peft.training.windowed import fit_windowed
from neurontune_peft.training.worded import TASKS, WORDINGS, worded


def prompt_set(*, separable: bool = True) -> PromptSet:
    """Harmful requests end in `zz!`, harmless ones in `ab.`: what a random model can tell apart at the last token."""
    ends = {"harmful": " zz!zz!", "benign": " ab.ab."} if separable else {"harmful": " x", "benign": " x"}
    words = [f"{a}{b}" for a in "bcdfghkl" for b in "aeiou"]
    prompts = [
        Prompt(f"{kind}-{i}", f"{words[i]}{ends[kind]}", kind, None, "train") for kind in ends for i in range(40)
    ]
    prompts += [Prompt(f"test-{k}", "never seen", k, None, "test") for k in ("harmful", "benign")]
    attacks = [Attack(name, name, "train", text) for name, text in (("a", "Sure: {prompt}"), ("b", "DAN, {prompt}"))]
    return PromptSet(tuple(prompts), tuple(attacks))


def attached():
    base = tiny_llama()
    widths = {site.name: site.width for site in find_sites(base).values()}
    neurons = Neurons.from_ranked({"safety": [(s, i) for i in range(24) for s in widths]}, widths=widths)
    return get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons)).eval()


OPTIONS = {"false_positive_budget": 0.1, "batch_size": 64}


def test_a_trigger_that_separates_is_written_into_the_adapter_with_its_threshold():
    model, tokenizer, prompts = attached(), tiny_tokenizer(), prompt_set()
    fit = fit_trigger(model, tokenizer, prompts, **OPTIONS)
    config = model.peft_config["default"]
    assert fit.dynamic
    assert fit.auc > 0.8
    assert set(fit.family_auc) >= {"a", "b", "frame letter"}
    assert max(fit.false_positives.values()) <= 0.1
    assert config.modulation == "dynamic"
    assert config.trigger_suffix == [4]
    assert (config.trigger_threshold, config.trigger_ramp) == (fit.threshold, fit.ramp)
    assert config.trigger_gate == ("ramp" if fit.ramp else "step")
    assert config.provenance["trigger"]["auc"] == fit.auc
    model.requires_grad_(False)
    texts = [f"{word} {end}" for word in ("ka", "lo") for end in ("zz!zz!", "ab.ab.")]
    rows = tokenizer([format_prompt(tokenizer, text) for text in texts], add_special_tokens=False, return_tensors="pt")
    with torch.no_grad(), model.trigger_log() as log:
        model(input_ids=rows["input_ids"])
    scores = [decision.score for decision in log]
    assert min(scores[0], scores[2]) > max(scores[1], scores[3])


def test_a_trigger_that_separates_nothing_leaves_the_adapter_static_and_says_so():
    model = attached()
    with pytest.warns(UserWarning, match=r"does not separate .* \(AUC 0\.[0-5]\d .*static"):
        fit = fit_trigger(model, tiny_tokenizer(), prompt_set(separable=False), **OPTIONS)
    assert not fit.dynamic
    assert model.peft_config["default"].modulation == "static"
    assert model.get_trigger() == {}


def test_too_few_requests_are_refused():
    with pytest.raises(ValueError, match=r"got 3 harmful and 4 harmless train .*; expected at least 40 and 40"):
        fit_trigger(attached(), tiny_tokenizer(), tiny_prompt_set())


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="got false_positive_budget=2; expected a share"):
        fit_trigger(attached(), tiny_tokenizer(), prompt_set(), false_positive_budget=2)
    with pytest.raises(ValueError, match="got window=7; expected a positive even number of tokens"):
        fit_trigger(attached(), tiny_tokenizer(), prompt_set(), window=7)
    with pytest.raises(ValueError, match="expected a PeftModel with one active"):
        fit_trigger(tiny_llama(), tiny_tokenizer(), prompt_set())


def test_a_request_is_kept_back_in_all_its_wrappings_at_once_and_no_test_prompt_is_used():
    prompts = prompt_set()
    examples = examples_of(prompts, folds=4, seed=0, most=300)
    for request in prompts.select(split="train"):
        own = [e for e in examples if re.search(rf"(^|\W){re.escape(request.prompt)}", e.text)]
        assert len({e.fold for e in own}) == 1
        assert {e.group for e in own} >= (
            {"plain", "attacked"} if request.kind == "harmful" else {"benign", "wrapped"}
        )
    assert {e.fold for e in examples} == {0, 1, 2, 3}
    assert not [e for e in examples if "never seen" in e.text]
    for source in ("a", "frame story"):  # harmful and harmless requests stand in the same wrappings
        assert {e.harmful for e in examples if e.source == source} == {True, False}


def test_the_threshold_keeps_each_group_within_the_budget():
    examples = list(examples_of(prompt_set(), folds=2, seed=0, most=300))
    scores = torch.randn(len(examples), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for budget in (0.01, 0.1, 0.3):
        threshold = calibrated(examples, scores, budget)
        for group in ("benign", "wrapped", "framed"):
            own = torch.tensor([not e.harmful and e.group == group for e in examples])
            assert (scores[own] > threshold).double().mean() <= budget


def test_strength_is_whole_for_no_more_harmless_requests_than_the_smaller_budget_allows():
    model, tokenizer, prompts = attached(), tiny_tokenizer(), prompt_set()
    fit = fit_trigger(model, tokenizer, prompts, **OPTIONS | {"false_positive_budget": 0.3}, full_strength_budget=0.05)
    assert fit.ramp > 0
    config = model.peft_config["default"]
    assert (config.trigger_gate, config.trigger_ramp) == ("ramp", fit.ramp)
    with trigger_aside(model):
        assert config.modulation == "static"
    assert (config.modulation, config.trigger_gate, config.trigger_ramp) == ("dynamic", "ramp", fit.ramp)
    strict = fit_trigger(model, tokenizer, prompts, **OPTIONS | {"false_positive_budget": 0.05})
    assert fit.threshold + fit.ramp == pytest.approx(strict.threshold)
    same = fit_trigger(model, tokenizer, prompts, **OPTIONS, full_strength_budget=0.1)
    assert (same.ramp, model.peft_config["default"].trigger_gate) == (0.0, "step")


def noise(requests, *, windows=1):
    generator = torch.Generator().manual_seed(0)
    ends, read = (torch.randn(n, 3, generator=generator) for n in (requests, windows * requests))
    return Features(ends, read, torch.arange(requests).repeat_interleave(windows), {"site": 3})


def test_a_request_is_harmful_if_one_of_its_windows_is():
    harmful = torch.arange(200) % 2 == 0
    features = noise(200, windows=8)
    features.windows.view(200, 8, 3)[harmful, 5, 1] += 6.0  # one window of eight, of one neuron
    means = Features(features.ends, features.windows.view(200, 8, 3).mean(dim=1), torch.arange(200), {"site": 3})
    areas = []
    for read in (features, means):
        scores = read.score(fit_windowed(read, harmful, l2=1e-2))
        areas.append(area_under_curve(scores[harmful], scores[~harmful]))
    assert areas[0] > 0.99
    assert areas[1] < 0.97  # diluted by the other windows
    again = fit_windowed(features, harmful, l2=1e-2)
    assert torch.equal(again.weights, fit_windowed(features, harmful, l2=1e-2).weights)


def test_with_one_window_each_the_regression_is_the_plain_one():
    features, labels = noise(300), torch.randn(300, generator=torch.Generator().manual_seed(1)) > 0
    features.ends[labels] += 0.5
    plain = fit_logistic(features.means.flatten(1), labels, l2=0.1)
    torch.testing.assert_close(
        features.score(fit_windowed(features, labels, l2=0.1)),
        plain.score(features.means.flatten(1)),
        rtol=1e-2,
        atol=1e-2,
    )


def test_some_of_the_requests_keep_their_own_windows():
    features = Features(
        torch.arange(8.0).view(4, 2), torch.arange(14.0).view(7, 2), torch.tensor([0, 1, 1, 1, 2, 3, 3]), {"site": 2}
    )
    some = features.of(torch.tensor([False, True, False, True]))
    assert some.ends.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert some.requests.tolist() == [0, 0, 0, 1, 1]
    assert some.windows[:, 0].tolist() == [2.0, 4.0, 6.0, 10.0, 12.0]
    assert some.highest(some.windows[:, 0]).tolist() == [6.0, 12.0]


def test_features_are_what_the_trigger_of_an_adapter_reads():
    model, tokenizer = attached(), tiny_tokenizer()
    generator = torch.Generator().manual_seed(0)
    weights = {s: torch.randn(24, 2, generator=generator).bfloat16() for s in model.get_neurons().sites}
    texts = ["ka", "lo ab. and so on, and so on, and so forth", "be zz!"]
    for window in (None, 4):
        options = {"suffix": generation_suffix(tokenizer), "opening": turn_opening(tokenizer), "window": window}
        model.set_trigger(weights, bias=0.5, threshold=0.0, **options)
        model.requires_grad_(False)
        features = trigger_features(model, tokenizer, texts, adapter_name="default", **options, batch_size=2)
        assert len(features.windows) == len(texts) if window is None else len(features.windows) > len(texts)
        held = torch.cat([weights[site] for site in features.counts])
        scores = features.score(Linear(held, 0.5)).tolist()
        for text, score in zip(texts, scores, strict=True):
            row = tokenizer(format_prompt(tokenizer, text), add_special_tokens=False, return_tensors="pt")
            with torch.no_grad(), model.trigger_log() as log:
                model(input_ids=row["input_ids"])
            assert log[0].score == pytest.approx(score, abs=1e-4)


def test_each_request_is_scored_by_a_trigger_that_saw_neither_it_nor_its_wrapping():
    examples = examples_of(prompt_set(), folds=2, seed=0, most=300)
    features = noise(len(examples))
    harmful = torch.tensor([e.harmful for e in examples])
    first = torch.tensor([e.fold == 0 for e in examples])
    features.ends[:, 0] = torch.where(first, harmful.float(), 0.0)  # gives away the labels of the first fold
    _, aucs, scores, trigger = cross_fitted(examples, features)
    assert not scores.isnan().any()
    assert set(aucs) == {e.source for e in examples if e.source}
    assert area_under_curve(scores[first & harmful], scores[first & ~harmful]) < 0.7  # its fold was not seen
    seen = features.score(trigger)
    assert area_under_curve(seen[first & harmful], seen[first & ~harmful]) > 0.95


def test_a_wrapping_is_scored_by_a_trigger_that_did_not_learn_what_gives_it_away():
    examples = examples_of(prompt_set(), folds=2, seed=0, most=300)
    features = noise(len(examples))
    harmful = torch.tensor([e.harmful for e in examples])
    own = torch.tensor([e.source == "a" for e in examples])
    features.ends[:, 0] = torch.where(own, harmful.float(), 0.0)
    _, aucs, scores, trigger = cross_fitted(examples, features)
    assert aucs["a"] < 0.7
    assert area_under_curve(scores[own & harmful], scores[own & ~harmful]) < 0.7
    seen = features.score(trigger)
    assert area_under_curve(seen[own & harmful], seen[own & ~harmful]) > 0.95


def test_the_regression_and_the_area_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    features = torch.tensor(rng.normal(size=(60, 3)) * [1, 5, 0.1] + [0, 3, 1])
    labels = torch.tensor(rng.random(60) < 0.4)
    found = fit_logistic(features, labels, l2=0.1)
    standard = (features - features.mean(0)) / features.std(0)
    weights = (found.weights * features.std(0)).requires_grad_()
    bias = torch.tensor(found.bias + float(found.weights @ features.mean(0)), requires_grad=True)
    each = torch.nn.functional.softplus(torch.where(labels, -1.0, 1.0) * (standard @ weights + bias))
    loss = each[labels].mean() / 2 + each[~labels].mean() / 2 + 0.05 * weights.square().sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-4
    assert bias.grad.abs() < 1e-4
    positive, negative = torch.tensor([1.0, 3.0, 3.0]), torch.tensor([0.0, 3.0])
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert area_under_curve(positive, negative) == pytest.approx(float(sum(pairs)) / 6)


def test_requests_longer_than_the_context_are_shortened():
    model, tokenizer = attached(), tiny_tokenizer()
    read = partial(trigger_features, model, tokenizer, adapter_name="default", suffix=[4], opening=None)
    with pytest.warns(UserWarning, match="longer than 512 tokens; the middle of their prompts was left out"):
        whole = read(["ab " * 400])
    with pytest.warns(UserWarning, match="longer than 512 tokens"):
        named = read(["ab " * 400], max_length=512)
    assert torch.equal(whole.ends, named.ends)
    assert torch.equal(whole.windows, named.windows)


def test_templates_are_also_tried_with_their_text_on_the_other_side():
    assert moved("Now: {prompt}") == ["{prompt}\nNow:"]
    assert moved("{prompt}\nGo on.") == ["Go on. {prompt}"]
    assert moved("As Max, {prompt}\nMax:") == ["{prompt}\nMax: As Max,", "As Max, Max: {prompt}"]
    assert moved("{prompt}") == []
    prompts = tiny_prompt_set()
    with_moved, without = (examples_of(prompts, folds=4, seed=0, most=20, move=move) for move in (True, False))
    added = set(with_moved) - set(without)
    assert set(without) <= set(with_moved)
    assert {(e.harmful, e.group, e.source in prompts.train_families) for e in added} == {
        (True, "attacked", True),
        (False, "wrapped", True),
    }


def test_harmless_tasks_are_worded_like_harmful_requests_and_are_not_those_that_are_measured_on():
    found = examples_of(prompt_set(), folds=4, seed=0, most=300)
    own = [e for e in found if e.group == "worded"]
    assert {(e.harmful, e.source) for e in own} == {(False, None)}
    assert {e.fold for e in own} == {0, 1, 2, 3}
    assert len(own) == sum(e.group == "plain" for e in found)
    assert {e.text for e in own} <= set(worded())
    assert len(set(worded())) == len(worded())
    measured = (Path(__file__).parents[1] / "benchmarks" / "unseen.py").read_text(encoding="utf-8")
    assert not [text for text in (*TASKS, *WORDINGS) if f'"{text}"' in measured]


def test_tasks_that_are_worded_like_harmful_requests_do_not_set_the_threshold():
    examples = [e for e in examples_of(prompt_set(), folds=4, seed=0, most=300) if e.group in ("benign", "worded")]
    scores = torch.tensor([5.0 if e.group == "worded" else i / 100 for i, e in enumerate(examples)]).double()
    assert calibrated(examples, scores, 0.1) < 5


def test_scales_are_learnt_from_harmless_requests_that_nearly_trigger():
    model, tokenizer = attached(), tiny_tokenizer()
    words = [f"{a}{b}" for a in "bcdfghkl" for b in "aeiou"]
    near = [Prompt(f"near-{i}", f"{word} zz!zz!", "benign", None, "train") for i, word in enumerate(words)]
    given = prompt_set()
    fit_trigger(model, tokenizer, given, **OPTIONS)
    prompts = PromptSet(given.prompts + tuple(near), given.attacks)
    found = nearly_flagged(model, tokenizer, prompts, share=0.5)
    assert {p.id for p in found.select(kind="benign", split="train")} == {p.id for p in near}
    assert found.select(kind="harmful", split="train") == prompts.select(kind="harmful", split="train")
    assert found.select(kind="benign", split="test") == prompts.select(kind="benign", split="test")
    assert found.attacks == prompts.attacks
    assert nearly_flagged(model, tokenizer, prompts, share=1) == prompts
    assert nearly_flagged(model, tokenizer, given, share=0.1) == given  # there are no more than the fewest


def test_a_request_counts_by_its_highest_score_whatever_its_wrapping(monkeypatch):
    model, tokenizer, prompts = attached(), tiny_tokenizer(), prompt_set()
    model.set_trigger({s: torch.ones(24, 2) for s in model.get_neurons().sites}, bias=0.0, threshold=0.0, suffix=[4])
    names = [f"benign-{i}" for i in range(40)]
    more = [Prompt(f"more-{i}", f"more {i}", "benign", None, "train") for i in range(40)]
    given = PromptSet(prompts.prompts + tuple(more), prompts.attacks)

    def read(model, tokenizer, texts, **options):
        """Plain, the added requests score higher; in one of their templates the others score highest."""
        scores = [2.0 if text.startswith("more") else 3.0 if text.startswith("DAN, ") else 0.0 for text in texts]
        scores = [
            0.0 if "more" in text and "DAN" in text else score for text, score in zip(texts, scores, strict=True)
        ]
        counts = {site: len(part) for site, part in model.get_trigger().items()}
        neurons = sum(counts.values())
        each = torch.tensor(scores).unsqueeze(1).expand(-1, neurons) / (2 * neurons)
        return Features(each, each, torch.arange(len(texts)), counts)

    monkeypatch.setattr("neurontune_peft.training.flagged.trigger_features", read)
    found = nearly_flagged(model, tokenizer, given, share=0.5)
    assert {p.id for p in found.select(kind="benign", split="train")} == set(names)


def test_what_is_nearly_flagged_needs_a_trigger_and_a_share():
    model, tokenizer, prompts = attached(), tiny_tokenizer(), prompt_set()
    with pytest.raises(ValueError, match="got adapter 'default' without a trigger; expected one"):
        nearly_flagged(model, tokenizer, prompts)
    with pytest.raises(ValueError, match=r"got share=0; expected a share above 0 and at most 1"):
        nearly_flagged(model, tokenizer, prompts, share=0)


def test_training_sets_the_trigger_aside_and_puts_it_back():
    model = attached()
    weights = {site: torch.randn(index.numel(), 2) for site, index in model.get_neurons().indices["safety"].items()}
    model.set_trigger(weights, bias=0.5, threshold=1e9, suffix=[4], opening=[3], window=6)
    before = model.get_trigger()
    prompts = tiny_prompt_set()
    log = meta_train(model, tiny_tokenizer(), prompts, SMALL)
    assert len(log.steps) == SMALL.steps
    config = model.peft_config["default"]
    assert (config.modulation, config.trigger_bias, config.trigger_threshold) == ("dynamic", 0.5, 1e9)
    assert (config.trigger_suffix, config.trigger_opening, config.trigger_window) == ([4], [3], 6)
    assert all(torch.equal(before[site], weight) for site, weight in model.get_trigger().items())
    twin = attached()
    meta_train(twin, tiny_tokenizer(), prompts, SMALL)
    moved_deltas = [p for n, p in model.named_parameters() if "neurontune_delta" in n]
    assert any(bool(delta.any()) for delta in moved_deltas)
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            moved_deltas, [p for n, p in twin.named_parameters() if "neurontune_delta" in n], strict=True
        )
    )
