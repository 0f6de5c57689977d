"""The comparison: its statistics by closed form, its controls by what they compute, its rows by what they cost."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft.tuners.tuners_utils import BaseTunerLayer
from training_helpers import SMALL, peft_model, values_of

from neurontune_peft.attribution import gradient
from neurontune_peft.evaluation import evaluate
from neurontune_peft.evaluation.compare import Comparison, Limits, Point, compare
from neurontune_peft.evaluation.compare import run as run_module
from neurontune_peft.evaluation.compare.bench import Bench
from neurontune_peft.evaluation.compare.frontier import attack_at_cost
from neurontune_peft.evaluation.compare.joint import joint_train
from neurontune_peft.evaluation.compare.methods import METHODS
from neurontune_peft.evaluation.compare.points import (
    ATTACK_HELD_OUT,
    ATTACK_TRAINED,
    BENIGN,
    OVER_REFUSAL,
    WRAPPED,
    measured_part,
    outcomes_of,
)
from neurontune_peft.evaluation.compare.statistics import bootstrap, difference, mcnemar, paired
from neurontune_peft.evaluation.compare.steering import Unsteered, block_names, refusal_direction, steered
from neurontune_peft.evaluation.compare.system_prompt import IN_FRONT, with_system_prompt
from neurontune_peft.judges import Verdict
from neurontune_peft.prompts import Attack, Prompt, format_prompt
from neurontune_peft.training import Log, MetaConfig, meta_train
from neurontune_peft.training.log import ValidationLog

TOKENIZER, PROMPTS = tiny_tokenizer(), tiny_prompt_set()
CONFIG = replace(SMALL, steps=2)
COUNTS = {"safety": 6, "utility": 2}
DIALS = {"strength": (0.5,), "multiplier": (), "coefficient": ()}


@pytest.fixture(autouse=True)
def small_triggers(monkeypatch):
    """How well a trigger is fitted is no matter of comparisons: one regularisation, one frame."""
    monkeypatch.setattr("neurontune_peft.training.requests.FRAMES", {"thanks": "{prompt} Thanks."}, raising=False)
    monkeypatch.setattr("neurontune_peft.training.trigger.L2", (0.1,), raising=False)


def odd_judge(prompt, answer):
    """A random model never refuses, so half of its answers are called a refusal."""
    return Verdict("refusal" if len(answer) % 2 else "compliance", 1.0, "odd length")


def small_compare(model=None, prompts=PROMPTS, **options):
    given = {
        "methods": ("neurontune", "random", "steering"),
        "config": CONFIG,
        "counts": COUNTS,
        "attribution": {"n_prompts": 2, "method": "gradient"},
        "settings": DIALS,
        "lr_tries": 1,
        "judge": odd_judge,
        "max_new_tokens": 2,
        **options,
    }
    return compare(tiny_llama() if model is None else model, TOKENIZER, prompts, **given)


def bench(**options):
    given = {"lr_tries": 1, "rates": {}, "attribution": {"n_prompts": 2, "method": "gradient"}, **options}
    return Bench(tiny_llama(), TOKENIZER, PROMPTS, CONFIG, counts=COUNTS, selection={}, **given)


def point(method, setting, *, attack, over=0.0, perplexity=10.0, seed=0, nominal=True, count=10):
    """A point of `count` prompts, of which the first ones are hits."""

    def first(share):
        return {str(i): i < round(share * count) for i in range(count)}

    return Point(
        method,
        seed,
        setting,
        nominal,
        {
            ATTACK_HELD_OUT: {f"role\t{key}": hit for key, hit in first(attack).items()},
            OVER_REFUSAL: first(over),
            BENIGN: first(0.0),
            WRAPPED: first(0.0),
        },
        perplexity=perplexity,
        kl=0.1,
        numbers=1,
        bytes=2,
        seconds=3.0,
        peak_memory=4,
    )


def comparison(*points, limits=None):
    return Comparison(points, "odd", "", "abc", limits or Limits(), "neurontune", {"seeds": [0], "lr_tries": 1})


def lasting(points):
    """What does not depend on the clock or on the machine."""
    return [replace(point, seconds=0.0, peak_memory=0) for point in points]


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 22 / 1024), (3, 3, 1.0)]
)
def test_mcnemar_is_twice_the_binomial_tail(better, worse, p):
    assert mcnemar(better, worse) == pytest.approx(p)


def test_pairs_are_matched_by_family_and_id_and_each_counts_once_whatever_the_number_of_seeds():
    reference = [{"a\t1": False, "b\t1": True, "c\t1": False}, {"a\t1": False, "b\t1": True, "c\t1": True}]
    control = [{"a\t1": True, "b\t1": False, "c\t1": True, "d\t1": True}]
    found = paired(reference, control)
    assert (found.total, found.better, found.worse) == (3, 1, 1)  # c is a tie over seeds, which counts as a hit
    assert found.p == 1.0


def test_the_bootstrap_draws_whole_requests_so_that_repeated_attacks_on_them_do_not_narrow_it():
    once = {f"a\t{i}": i % 3 == 0 for i in range(30)}
    twice = once | {f"b\t{i}": i % 3 == 0 for i in range(30)}
    single, double = bootstrap([once]), bootstrap([twice])
    assert single.value == pytest.approx(1 / 3)
    assert single == double
    spread = 1.96 * math.sqrt(2 / 9 / 30)
    assert single.low == pytest.approx(1 / 3 - spread, abs=0.05)
    assert single.high == pytest.approx(1 / 3 + spread, abs=0.05)


def test_outcomes_that_are_all_alike_have_the_exact_bound_and_nothing_measured_has_none():
    alike = bootstrap([{str(i): False for i in range(20)}])
    assert (alike.value, alike.low) == (0.0, 0.0)
    assert alike.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert bootstrap([{}]) is None


def test_a_difference_is_paired_by_request():
    hits = {f"a\t{i}": i % 2 == 0 for i in range(20)}
    same = difference([hits], [hits])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    shifted = difference([dict.fromkeys(hits, False)], [hits])
    assert shifted.value == -0.5
    assert -0.8 < shifted.low < -0.5 < shifted.high < -0.2


def test_the_median_is_over_seeds():
    seeds = [{"1": True, "2": True}, {"1": True, "2": False}, {"1": False, "2": False}]
    assert bootstrap(seeds).value == 0.5


def test_attack_success_is_interpolated_between_neighbouring_settings():
    path = [(0.1, 0.8), (0.2, 0.4), (0.4, 0.0)]
    assert attack_at_cost(path, 0.1) == 0.8
    assert attack_at_cost(path, 0.15) == pytest.approx(0.6)
    assert attack_at_cost(path, 0.3) == pytest.approx(0.2)
    assert attack_at_cost(path, 0.9) == 0.0
    assert attack_at_cost(path, 0.05) is None


def test_within_the_limits_the_setting_with_the_lowest_attack_success_is_taken():
    found = comparison(
        point("base", None, attack=0.9),
        point("neurontune", 0.5, attack=0.4, nominal=False),
        point("neurontune", 1.0, attack=0.1, over=0.1),
        point("lora", 1.0, attack=0.0, perplexity=10.2),
        limits=Limits(over_refusal=0.02),
    )
    assert found.within_limits("neurontune").setting == 0.5
    assert found.as_trained("neurontune").setting == 1.0
    assert found.within_limits("lora") is None
    loose = replace(found, limits=Limits(over_refusal=0.1, perplexity=0.02))
    assert loose.within_limits("neurontune").setting == 1.0  # exactly at its limit, whatever the rounding
    assert loose.within_limits("lora").setting == 1.0


def test_at_equal_cost_a_control_is_taken_between_the_base_model_and_its_settings():
    found = comparison(
        point("base", None, attack=0.9, over=0.1),
        point("neurontune", 1.0, attack=0.2, over=0.2),
        point("lora", 1.0, attack=0.1, over=0.5),
        limits=Limits(over_refusal=0.1),
    )
    assert found.attack_at_equal_cost("neurontune") == pytest.approx(0.2)
    assert found.attack_at_equal_cost("lora") == pytest.approx(0.9 - 0.8 / 4)
    assert found.attack_at_equal_cost("base") == pytest.approx(0.9)


def test_tests_pair_the_reference_with_a_control_at_given_settings():
    found = comparison(
        point("base", None, attack=0.9),
        point("neurontune", 0.5, attack=0.8, nominal=False),
        point("neurontune", 1.0, attack=0.1),
        point("lora", 1.0, attack=0.5),
    )
    assert (found.test("lora", 1.0, against=1.0).better, found.test("lora", 1.0, against=1.0).worse) == (4, 0)
    assert (found.test("lora", 1.0, against=0.5).better, found.test("lora", 1.0, against=0.5).worse) == (0, 3)
    assert found.test("lora", 1.0, against=1.0).margin.value == pytest.approx(-0.4)


def test_a_comparison_without_base_or_reference_is_refused():
    with pytest.raises(ValueError, match=r"got points of .*; expected 'base' among them; "):
        comparison(point("neurontune", 1.0, attack=0.1))
    with pytest.raises(ValueError, match=r"expected 'neurontune' among them"):
        comparison(point("base", None, attack=0.1))


def test_outcomes_add_up_to_the_rates_of_the_report():
    report = evaluate(tiny_llama(), TOKENIZER, PROMPTS, judge=odd_judge, max_new_tokens=2)
    found = outcomes_of(report, PROMPTS.held_out_families)
    measured = evaluate(tiny_llama(), TOKENIZER, measured_part(PROMPTS), judge=odd_judge, max_new_tokens=2)
    assert outcomes_of(measured, PROMPTS.held_out_families) == found
    assert not measured.attack_success_train_templates
    shares = {column: (sum(hits.values()), len(hits)) for column, hits in found.items()}
    held_out, trained = report.attack_success_held_out.values(), report.attack_success_trained.values()
    assert shares[ATTACK_HELD_OUT] == (sum(r.successes for r in held_out), sum(r.total for r in held_out))
    assert shares[ATTACK_TRAINED] == (sum(r.successes for r in trained), sum(r.total for r in trained))
    for column, rate in (
        (OVER_REFUSAL, report.borderline_refusal),
        (BENIGN, report.benign_refusal),
        (WRAPPED, report.wrapped_benign_refusal),
    ):
        assert shares[column] == (rate.successes, rate.total)


def test_fewer_test_requests_are_spread_evenly_and_bring_their_own_attacks():
    own = Attack("own", "own", "test", prompt_id="he-1", attacked_prompt="Own!")
    prompts = replace(PROMPTS, attacks=(*PROMPTS.attacks, own))
    part = measured_part(prompts, 2)
    assert [prompt.id for prompt in part.prompts] == ["he-0", "he-1", "be-0", "be-2", "oe-0", "oe-1"]
    assert own in part.attacks
    assert own not in measured_part(prompts, 1).attacks
    point = small_compare(methods=("base",), max_tests=1).points[0]
    assert {column: len(hits) for column, hits in point.outcomes.items()} == {
        ATTACK_HELD_OUT: 1,
        ATTACK_TRAINED: 2,
        OVER_REFUSAL: 1,
        BENIGN: 1,
        WRAPPED: 1,
        "plain_refusal": 1,
    }


@torch.no_grad()
def logits_of(model):
    return model(input_ids=torch.arange(5, 25)[None]).logits


def test_steering_adds_the_direction_behind_its_block_and_leaves_nothing_behind():
    model, block = tiny_llama(), "model.layers.1"
    before = logits_of(model)
    direction = torch.linspace(-1, 1, 32)
    with steered(model, block, direction, 0.5):
        during = logits_of(model)
        torch.testing.assert_close(logits_of(Unsteered(model, block)), before, rtol=0, atol=0)
        assert torch.equal(logits_of(model), during)
    assert torch.equal(logits_of(model), before)
    seen = []
    handle = model.model.norm.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    logits_of(model)
    handle.remove()
    torch.testing.assert_close(during, model.lm_head(model.model.norm(seen[0] + 0.5 * direction)))
    with pytest.raises(RuntimeError), steered(model, block, direction, 1.0):
        raise RuntimeError
    assert torch.equal(logits_of(model), before)


def test_the_refusal_direction_is_the_difference_of_means_at_the_last_prompt_token():
    model = tiny_llama()
    assert block_names(model) == ["model.layers.0", "model.layers.1"]
    means = []
    for kind in ("harmful", "benign"):
        states = []
        for prompt in PROMPTS.select(kind=kind, split="train"):
            ids = TOKENIZER(format_prompt(TOKENIZER, prompt.prompt), add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                states.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1])
        means.append(torch.stack(states).mean(dim=0))
    found = refusal_direction(model, TOKENIZER, PROMPTS, "model.layers.0", batch_size=2)
    torch.testing.assert_close(found, means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_a_refusal_direction_needs_both_kinds_of_prompts():
    prompts = replace(PROMPTS, prompts=PROMPTS.select(kind="harmful"), attacks=())
    with pytest.raises(ValueError, match=r"got 3 harmful and 0 benign train prompts; expected some of both"):
        refusal_direction(tiny_llama(), TOKENIZER, prompts, "model.layers.0")


def test_a_system_prompt_takes_the_system_role_or_stands_in_front_of_the_request():
    text = 'Be "safe", {always}.'
    template, note = with_system_prompt(TOKENIZER, text)
    shown = format_prompt(TOKENIZER, "Hi", chat_template=template)
    assert (shown, note) == (f"<bos><system>{text}<eos><user>Hi<eos><assistant>", "")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    silent = "{{ '<bos>' }}{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    for own in (refusing + silent, silent):
        template, note = with_system_prompt(TOKENIZER, text, chat_template=own)
        assert note == IN_FRONT
        assert format_prompt(TOKENIZER, "Hi", chat_template=template) == f"<bos>{text}\n\nHi"


def test_a_system_prompt_without_any_chat_template_stands_in_front_of_the_plain_text():
    plain = tiny_tokenizer(chat_template=None)
    with pytest.warns(UserWarning, match="without a chat template"):
        template, note = with_system_prompt(plain, "Be safe.")
    assert note == IN_FRONT
    assert format_prompt(plain, "Hi", chat_template=template) == "Be safe.\n\nHi\n"


# A trigger takes more requests than the tiny prompt set has.
MANY = replace(
    PROMPTS,
    prompts=PROMPTS.prompts
    + tuple(Prompt(f"more-harmful-{i}", f"Break {i} zz!", "harmful", None, "train") for i in range(44))
    + tuple(Prompt(f"more-benign-{i}", f"Mend {i} ab.", "benign", "Yes.", "train") for i in range(80)),
)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_the_base_model_as_it_was_bit_for_bit(name):
    given = bench()
    if METHODS[name].triggered:
        given = replace(given, prompts=MANY)
    model = given.model
    model.model.layers[0].train()
    model.lm_head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    with METHODS[name].run(given, name, 0) as made, made.turned(0.5):
        assert torch.isfinite(logits_of(made.model)).all()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "off"), [("neurontune", 0.0), ("ia3", 0.0), ("lora", 0.0), ("fixed", 1.0)])
def test_a_dial_goes_from_the_base_model_to_the_adapter_and_comes_back(name, off):
    given = bench()
    before = logits_of(given.model)
    with METHODS[name].run(given, name, 0) as made:
        trained = logits_of(made.model)
        with made.turned(off):
            torch.testing.assert_close(logits_of(made.model), before, rtol=1e-5, atol=1e-5)
        with made.turned(off + 1):
            torch.testing.assert_close(logits_of(made.model), trained, rtol=1e-6, atol=1e-6)
        with made.turned(off + 2):
            assert (logits_of(made.model) - trained).abs().max() > 1e-4
        assert torch.equal(logits_of(made.model), trained)
    assert (trained - before).abs().max() > 1e-4


def test_a_fixed_multiplier_multiplies_the_safety_neurons_and_no_others():
    given = bench()
    neurons, _ = given.neurons(0)
    expected = tiny_llama()
    with torch.no_grad():
        for site, index in neurons.indices["safety"].items():
            expected.get_submodule(site).weight[:, index] *= 3.0
    with METHODS["fixed"].run(given, "fixed", 0) as made, made.turned(3.0):
        torch.testing.assert_close(logits_of(made.model), logits_of(expected), rtol=1e-4, atol=1e-5)
        assert made.numbers == 1


def test_joint_training_of_any_method_is_order_none_of_ours():
    options = replace(SMALL, order="none", bounds={})
    ours, theirs = peft_model(), peft_model()
    meta_train(ours, TOKENIZER, PROMPTS, options)
    joint_train(theirs, TOKENIZER, PROMPTS, replace(options, order="first"))
    assert values_of(ours).abs().max() > 0.1
    assert torch.equal(values_of(ours), values_of(theirs))


def test_random_controls_are_as_many_neurons_in_the_same_layers():
    given = bench()
    with METHODS["neurontune"].run(given, "neurontune", 0) as made:
        own = made.model.get_neurons()
    with METHODS["layer-random"].run(given, "layer-random", 0) as made:
        matched = made.model.get_neurons()
    with METHODS["random"].run(given, "random", 0) as made:
        free = made.model.get_neurons()
    assert matched.counts == own.counts
    assert matched.jaccard(own) == 0.0
    assert free.totals == own.totals == COUNTS


def tried(given, name="mine", scores=(3.0, 1.0, 2.0), **options):
    """Train with a stand-in whose validation loss is given for each try; the rates it saw."""
    seen, left = [], list(scores)

    @contextmanager
    def train(config):
        seen.append(config.lr)
        if left and left[0] is None:
            left.pop(0)
            raise FloatingPointError("diverged")
        found = left.pop(0) if left else 0.0
        validations = (ValidationLog(0, 0.0, 0.0, {}), ValidationLog(2, found, 0.0, {}))
        yield None, Log((), {}, "", validations=validations)

    with given.trained(name, 0, train, rate=0.1, **options) as made:
        return seen, made.learning_rate


def test_a_control_takes_the_learning_rate_that_does_best_on_validation_and_keeps_it():
    given = bench(lr_tries=3)
    seen, rate = tried(given)
    assert rate == pytest.approx(0.1 * 10**-0.5)
    assert len(seen) == 4
    assert seen[-1] == rate
    assert given.rates == {"mine": rate}
    assert tried(given) == ([rate], rate)
    assert tried(bench(lr_tries=3), tries=False) == ([0.1], 0.1)
    assert tried(bench(lr_tries=1)) == ([0.1], 0.1)


def test_a_learning_rate_that_diverges_is_not_taken_and_all_diverging_is_an_error():
    assert tried(bench(lr_tries=3), scores=(None, 5.0, None))[1] == pytest.approx(0.1 * 10**-0.5)
    with pytest.raises(ValueError, match=r"got method 'mine' diverging at every learning rate near 0.1; expected"):
        tried(bench(lr_tries=2), scores=(None, None))


def test_learning_rates_are_tried_on_train_families_alone():
    held = tuple(attack for attack in PROMPTS.attacks if attack.split == "train")
    blind = replace(PROMPTS, prompts=PROMPTS.select(split="train"), attacks=held)
    rates = []
    for prompts in (PROMPTS, blind):
        given = Bench(tiny_llama(), TOKENIZER, prompts, CONFIG, COUNTS, {}, {}, lr_tries=2, rates={})
        with METHODS["ia3"].run(given, "ia3", 0) as made:
            rates.append((made.learning_rate, logits_of(made.model)))
    assert rates[0][0] == rates[1][0]
    assert torch.equal(rates[0][1], rates[1][1])


@pytest.mark.parametrize(("stopped", "interrupted"), [("interrupted after 3 steps", True), ("diverged at 3", False)])
def test_an_interrupted_training_is_no_result_and_one_that_diverged_is_noted(stopped, interrupted):
    @contextmanager
    def train(config):
        yield None, Log((), {}, "", stopped=stopped)

    if interrupted:
        with pytest.raises(KeyboardInterrupt, match="after 3"), bench().trained("mine", 0, train, rate=0.1):
            pass
    else:
        with bench().trained("mine", 0, train, rate=0.1) as made:
            assert made.note == stopped


def test_a_comparison_measures_each_method_at_each_setting_and_tests_it():
    found = small_compare(seeds=(0, 1))
    assert found.methods == ("base", "neurontune", "random", "steering")
    assert found.settings("neurontune") == (0.5, 1.0)
    assert {point.seed for point in found.points if point.method == "random"} == {0, 1}
    assert {point.seed for point in found.points if point.method == "steering"} == {0}
    base, tuned = found.as_trained("base"), found.as_trained("neurontune")
    assert (base.kl, base.numbers, base.bytes) == (0.0, 0, 0)
    assert tuned.kl > 0
    assert (tuned.numbers, tuned.learning_rate, tuned.seeds) == (8, 0.1, 2)
    assert found.as_trained("steering").kl > 0
    assert found.test("random", 1.0, against=1.0).total == 3


def test_the_same_seeds_give_the_same_points_whatever_the_state_of_the_generator():
    given = {"methods": ("neurontune", "random", "lora"), "settings": dict.fromkeys(DIALS, ())}
    model, found = tiny_llama(), []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        found.append(lasting(small_compare(model, **given).points))
        assert torch.equal(before, torch.random.get_rng_state())
    assert found[0] == found[1]


def test_a_comparison_that_was_interrupted_goes_on_without_measuring_anything_twice(tmp_path, monkeypatch):
    whole = small_compare()
    calls = []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*args, **options)

    file = tmp_path / "rows.jsonl"
    monkeypatch.setattr(run_module, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_compare(checkpoint=file)
    file.write_text(file.read_text() + '{"point": {"meth')  # a crash in the middle of a line
    resumed = small_compare(checkpoint=file)
    assert len(calls) == len(whole.points) + 1
    assert lasting(resumed.points) == lasting(whole.points)
    assert small_compare(checkpoint=file).points == resumed.points
    assert len(calls) == len(whole.points) + 1
    small_compare(checkpoint=file, settings={**DIALS, "coefficient": (0.25,)})
    assert len(calls) == len(whole.points) + 2


def test_the_checkpoint_of_another_comparison_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "rows.jsonl"
    small_compare(methods=("base",), checkpoint=file)
    before = file.read_text()
    with pytest.raises(ValueError, match=r"got checkpoint .* another model, prompt set or options; expected"):
        small_compare(methods=("base",), checkpoint=file, config=replace(CONFIG, steps=3))
    assert file.read_text() == before
    file.write_text(before + "{}\n")
    with pytest.raises(ValueError, match=r"got checkpoint .* with a damaged line"):
        small_compare(methods=("base",), checkpoint=file)


def test_a_chosen_learning_rate_is_kept_in_the_checkpoint(tmp_path):
    file = tmp_path / "rows.jsonl"
    found = small_compare(methods=("random",), lr_tries=2, checkpoint=file)
    rates = [json.loads(line) for line in file.read_text().splitlines() if "learning_rate" in json.loads(line)]
    assert rates == [{"method": "random", "learning_rate": found.as_trained("random").learning_rate}]
    assert found.reference == "random"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("neurontune", "magic")}, r"got method 'magic'; expected one of .*'lora'.*'gate_path'"),
        ({"seeds": (1, 1)}, r"got seeds \[1, 1\]; expected"),
        ({"seeds": ()}, r"got seeds \[\]; expected"),
        ({"settings": {"power": (1.0,)}}, r"got settings of \['power'\]; expected"),
        ({"lr_tries": 9}, r"got lr_tries=9; expected 1 to 5"),
        ({"max_tests": 0}, r"got max_tests=0; expected at least 1"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        small_compare(checkpoint=tmp_path / "rows.jsonl", **options)
    assert not list(tmp_path.iterdir())


def test_limits_are_not_negative():
    with pytest.raises(ValueError, match=r"got limit perplexity=-0.1; expected at least 0; "):
        Limits(perplexity=-0.1)


def test_ways_of_scoring_are_methods_by_name_or_as_functions():
    def backwards(model, batch, sites, objective):
        return {name: -score for name, score in gradient(model, batch, sites, objective).items()}

    found = small_compare(methods={"base": "base", "mine": backwards, "peer": "gradient"})
    assert found.methods == ("base", "mine", "peer")
    assert found.reference == "mine"
    assert found.options["methods"]["mine"].endswith("backwards")


def test_a_saved_comparison_loads_as_the_same_value_and_other_files_are_refused(tmp_path):
    found = small_compare(methods=("neurontune",))
    found.save(tmp_path / "comparison.json")
    assert Comparison.load(tmp_path / "comparison.json") == found
    assert "neurontune" in str(found)
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(ValueError, match=r"got .*; expected a comparison; write one with Comparison.save"):
            Comparison.load(tmp_path / name)


def test_options_of_deltas_do_not_disturb_other_methods():
    config = MetaConfig(**{**CONFIG.to_dict(), "nested": True, "zero_share": 0.2, "l1": 0.1, "bounds": {}})
    given = Bench(tiny_llama(), TOKENIZER, PROMPTS, config, COUNTS, {}, {}, lr_tries=1, rates={})
    with METHODS["lora"].run(given, "lora", 0) as made:
        assert made.numbers == 2 * 8 * (48 + 32)
