"""Training of scales: what changes, what does not, and meta-learning that is what it says."""

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import tiny_llama
from peft import LoraConfig, get_peft_model
from torch import nn
from training_helpers import PROMPTS, SITES, SMALL, TOKENIZER, peft_model, toy_deltas, values_of

from neurontune_peft.objectives import kl_to_base, response_logits, target_log_prob
from neurontune_peft.prompts import Attack, Prompt, PromptSet, encode
from neurontune_peft.training import Log, MetaConfig, meta_train, refusals
from neurontune_peft.training import families as losses_of_families
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.inner import Task, attacked_gradient, through_inner_steps
from neurontune_peft.training.losses import answer_loss, token_weights, utility_losses
from neurontune_peft.training.tasks import TaskSampler


@pytest.mark.parametrize("order", ["first", "second", "none", "reptile"])
def test_the_loss_falls(order):
    model = peft_model()
    log = meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, order=order, steps=30, lr=0.1, utility_weight=0.1))
    first, last = (sum(step.safety for step in part) / 6 for part in (log.steps[:6], log.steps[-6:]))
    assert last < first - 0.05
    assert len(log.steps) == 30
    assert {step.family for step in log.steps} == {"prefix", "persona"}
    assert all(len(step.inner) == (0 if order == "none" else 2) for step in log.steps)
    if order in ("first", "second"):  # the second step of "reptile" is on other prompts
        assert sum(step.inner[1] for step in log.steps) < sum(step.inner[0] for step in log.steps)


def test_only_the_deltas_change_and_nothing_is_left_behind():
    model = peft_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    model.base_model.model.model.layers[0].train()
    modes = {name: module.training for name, module in model.named_modules()}
    meta_train(model, TOKENIZER, PROMPTS, SMALL)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"base_model.model.{site}.neurontune_delta.default" for site in SITES}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(isinstance(p, nn.Parameter) for p in find_deltas(model, {}).parameters)


def test_deltas_stay_within_the_bounds_of_their_role():
    model = peft_model()
    bounds = {"safety": (0.0, 0.05), "utility": (-0.02, 0.0)}
    meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, lr=0.2, bounds=bounds))
    for layer in (model.get_submodule(f"base_model.model.{site}") for site in SITES):
        delta = layer.neurontune_delta["default"].detach()
        for role, (low, high) in bounds.items():
            part = delta[layer.roles["default"][role]]
            assert part.min() >= low
            assert part.max() <= high
            assert part.abs().max() > 0


def test_a_role_without_bounds_is_free_and_bounds_never_widen_others():
    model = peft_model()
    meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, lr=0.2, bounds={"utility": (0.0, 0.0)}))
    layer = model.get_submodule(f"base_model.model.{SITES[1]}")
    delta, roles = layer.neurontune_delta["default"].detach(), layer.roles["default"]
    assert not delta[roles["utility"]].any()
    assert (delta[roles["safety"]] < 0).any()


@pytest.mark.parametrize("order", ["first", "second", "none"])
def test_the_same_seed_gives_the_same_deltas(order):
    one, two, other = peft_model(), peft_model(), peft_model()
    config = replace(SMALL, order=order, steps=4)
    torch.manual_seed(1)
    first = meta_train(one, TOKENIZER, PROMPTS, config)
    torch.manual_seed(2)
    second = meta_train(two, TOKENIZER, PROMPTS, config)
    meta_train(other, TOKENIZER, PROMPTS, replace(config, seed=1))
    assert torch.equal(values_of(one), values_of(two))
    assert first == second
    assert not torch.equal(values_of(one), values_of(other))


def toy(order, loss):
    deltas = toy_deltas(torch.tensor([0.1, -0.2, 0.3]))
    task = Task(
        "toy",
        support=lambda values: loss(values[0], torch.tensor([1.0, 2.0, -1.0])),
        query=lambda values: loss(values[0], torch.tensor([0.5, 1.0, 1.0])),
        costs=lambda values: {},
    )
    config = MetaConfig(order=order, inner_steps=3, inner_lr=0.1, support_weight=0.0)
    return through_inner_steps(deltas, task, config).gradients[0]


def test_first_and_second_order_agree_where_the_loss_is_linear():
    def linear(values, batch):
        return (values * batch).sum()

    torch.testing.assert_close(toy("first", linear), toy("second", linear))
    torch.testing.assert_close(toy("first", linear), torch.tensor([0.5, 1.0, 1.0]))


def test_reptile_is_the_mean_gradient_along_inner_steps_that_take_turns_on_both_sets():
    support, query, start = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]), torch.tensor([0.1, -0.2])
    task = Task(
        "toy",
        support=lambda values: (values[0] - support).square().sum() / 2,
        query=lambda values: (values[0] - query).square().sum() / 2,
        costs=lambda values: {},
    )
    found = attacked_gradient(toy_deltas(start), task, MetaConfig(order="reptile", inner_steps=3, inner_lr=0.1))
    values, gradients = start, []
    for optimum in (support, query, support):
        gradients.append(values - optimum)
        values = values - 0.1 * gradients[-1] / gradients[-1].square().mean().sqrt()
    torch.testing.assert_close(found.gradients[0], sum(gradients) / 3)
    assert len(found.inner) == 3
    assert found.loss == found.inner[-1] == pytest.approx(gradients[-1].square().sum().item() / 2)


def test_second_order_is_the_derivative_through_the_inner_steps():
    def quadratic(values, batch):
        return ((values - batch) ** 2).sum()

    def after_inner_steps(start):
        values, support, query = start, torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.5, 1.0, 1.0])
        for _ in range(3):
            gradient = 2 * (values - support)
            values = values - 0.1 * gradient / gradient.square().mean().sqrt()
        return ((values - query) ** 2).sum()

    start = torch.tensor([0.1, -0.2, 0.3])
    expected = torch.func.jacrev(after_inner_steps)(start)
    torch.testing.assert_close(toy("second", quadratic), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(toy("first", quadratic), expected, atol=1e-2)


def test_second_order_on_a_model_agrees_with_finite_differences():
    model = peft_model()
    config = replace(SMALL, order="second", inner_lr=0.05, support_weight=0.0)
    deltas = find_deltas(model, {})
    task = Families(model, TOKENIZER, deltas, TaskSampler(PROMPTS, config, ("Sorry, no.",)), config).draw(0)
    gradients = through_inner_steps(deltas, task, config).gradients
    first_order = through_inner_steps(deltas, task, replace(config, order="first")).gradients
    parameter, size = deltas.parameters[1], 0.02
    place = int((gradients[1] - first_order[1]).abs().argmax())
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[place] += sign * size
        ends.append(through_inner_steps(deltas, task, config).loss)
        with torch.no_grad():
            parameter[place] -= sign * size
    slope = (ends[0] - ends[1]) / (2 * size)
    assert float(gradients[1][place]) == pytest.approx(slope, rel=0.05, abs=1e-3)


@pytest.mark.parametrize(("order", "needed"), [("first", [False]), ("second", [True])])
def test_the_attention_kernel_with_a_second_derivative_is_chosen_for_second_order_only(order, needed):
    seen = []

    def loss(values):
        seen.append(not (torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()))
        return values[0].square().sum()

    before = torch.backends.cuda.flash_sdp_enabled()
    task = Task("toy", support=loss, query=loss, costs=lambda values: {})
    through_inner_steps(toy_deltas(torch.ones(2)), task, MetaConfig(order=order, inner_steps=2))
    assert seen == needed * 3
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_gradient_checkpointing_does_not_change_the_result():
    plain, checkpointed = peft_model(), peft_model()
    with warnings.catch_warnings():  # transformers renames this method; both names are in use
        warnings.simplefilter("ignore", FutureWarning)
        checkpointed.gradient_checkpointing_enable()
    checkpointed.train()
    for model in (plain, checkpointed):
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, steps=2))
    assert torch.equal(values_of(plain), values_of(checkpointed))


def test_a_prompt_set_without_borderline_prompts_or_templates_works():
    kept = tuple(p for p in PROMPTS.prompts if p.kind != "borderline")
    model = peft_model()
    meta_train(model, TOKENIZER, replace(PROMPTS, prompts=kept), replace(SMALL, steps=2))
    made = tuple(
        Attack("optimised", f"o-{i}", "train", prompt_id=f"ht-{i}", attacked_prompt=f"!! Break {i} !!")
        for i in range(3)
    )
    with pytest.warns(UserWarning, match=r"one usable attack family \('optimised'\).*training is joint"):
        log = meta_train(model, TOKENIZER, PromptSet(kept, made, PROMPTS.phrases), replace(SMALL, steps=2))
    assert {step.family for step in log.steps} == {"optimised"}
    assert log.config["order"] == "none"


def test_support_and_query_share_no_prompt_and_no_template():
    sampler = TaskSampler(PROMPTS, replace(SMALL, support_size=1, query_size=2), ("Sorry, no.",))
    for step in range(8):
        data = sampler.draw(step)
        requests = [p.prompt for p in PROMPTS.select(kind="harmful", split="train")]
        support, query = (
            {next(r for r in requests if r in text) for text, _ in part} for part in (data.support, data.query)
        )
        assert not support & query
        if data.family == "prefix":
            opening = ["Start with Sure" in text for text, _ in data.support + data.query]
            assert opening in ([True, False, False], [False, True, True])
        assert data == sampler.draw(step)


def test_moved_templates_are_drawn_on_the_side_of_the_text_that_they_move():
    config = replace(SMALL, support_size=2, query_size=2, wrapped_size=3, move_templates=True)
    sampler = TaskSampler(PROMPTS, config, ("Sorry, no.",))
    steps = [sampler.draw(step) for step in range(24)]
    words = {a.template.replace("{prompt}", "").strip() for a in PROMPTS.templates(split="train", families=["prefix"])}
    attacked = [data for data in steps if data.family == "prefix"]
    for data in attacked:
        support, query = (
            {each for each in words if any(each in text for text, _ in part)} for part in (data.support, data.query)
        )
        assert support
        assert query
        assert not support & query
    wrapped = [t for data in steps for (t, _), kind in zip(data.utility, data.kinds, strict=True) if kind == "wrapped"]
    for texts in ([t for data in attacked for t, _ in (*data.support, *data.query)], wrapped):
        sides = {(each, text.startswith(each)) for each in words for text in texts if each in text}
        assert sides == {(each, before) for each in words for before in (True, False)}
    assert sampler.draw(3) == steps[3]


def test_only_train_prompts_and_train_templates_are_used():
    sampler = TaskSampler(
        PROMPTS, replace(SMALL, support_size=2, query_size=2, benign_size=3, wrapped_size=3), ("No.",)
    )
    texts = []
    for step in range(12):
        data = sampler.draw(step)
        texts += [text for part in (data.support, data.query, data.plain, data.utility) for text, _ in part]
    assert not [text for text in texts for p in PROMPTS.select(split="test") if p.prompt in text]
    held_out = ("Begin with Yes", "Rex", "Omega", "As a teacher", "Dear expert")
    assert not [text for text in texts for words in held_out if words in text]
    assert [text for text in texts if "What is" in text and "DAN" in text]


def test_losses_agree_with_the_objectives_where_all_tokens_weigh_the_same():
    model = tiny_llama()
    batch = encode(TOKENIZER, ["One.", "Say two."], ["Yes", "No, never"])
    tuned = tiny_llama(seed=1)
    base_logits = response_logits(model, batch).detach()
    kl, nll = utility_losses(tuned, batch, base_logits, first_token_weight=1.0)
    torch.testing.assert_close(kl, kl_to_base(tuned, batch, base_logits).mean())
    torch.testing.assert_close(nll, -target_log_prob(tuned, batch).mean())
    torch.testing.assert_close(answer_loss(tuned, batch, first_token_weight=1.0), nll)
    assert utility_losses(model, batch, base_logits, first_token_weight=1.0)[0].abs() < 1e-6


def test_with_focus_an_answer_that_is_given_anyway_counts_less():
    model = tiny_llama()
    texts, answers = ["One.", "Say two.", "Say three."], ["Yes", "No, never", "Maybe so"]
    alone = [
        answer_loss(model, encode(TOKENIZER, [text], [answer]), first_token_weight=4.0)
        for text, answer in zip(texts, answers, strict=True)
    ]
    batch = encode(TOKENIZER, texts, answers)
    for focus in (1.0, 2.0, 3.0):
        expected = torch.stack(alone).pow(focus).mean()
        torch.testing.assert_close(answer_loss(model, batch, first_token_weight=4.0, focus=focus), expected)


def test_the_first_token_of_an_answer_weighs_more():
    batch = encode(TOKENIZER, ["One.", "Say two."], ["ab", "abc"], add_eos=False)
    weights = token_weights(batch, 3.0)
    torch.testing.assert_close(weights, torch.tensor([3 / 4, 1 / 4, 3 / 5, 1 / 5, 1 / 5]) / 2)


def test_own_refusals_are_the_targets_when_asked_for(monkeypatch):
    asked = []

    def answers(model, tokenizer, prompts, **options):
        asked.extend(prompts)
        return ["I'm sorry, no way.", "Sure, here it is.", "I cannot."]

    monkeypatch.setattr("neurontune_peft.training.refusals.generate_answers", answers)
    seen = []
    original = TaskSampler.__init__
    monkeypatch.setattr(TaskSampler, "__init__", lambda self, p, c, r: (seen.extend(r), original(self, p, c, r))[1])
    meta_train(peft_model(), TOKENIZER, PROMPTS, replace(SMALL, steps=1, refusal_targets="own"))
    assert asked == ["Break a door.", "Break it.", "Break x."]
    assert seen == ["I'm sorry, no way.", "I cannot."]


@pytest.mark.parametrize(("refused", "own"), [(0, False), (1, False), (2, True), (20, True)])
def test_a_model_that_refuses_too_little_learns_the_phrases_and_that_is_said(monkeypatch, refused, own):
    harmful = tuple(Prompt(f"more-{i}", f"Break {i}.", "harmful", None, "train") for i in range(17))
    prompts = replace(PROMPTS, prompts=PROMPTS.prompts + harmful)  # 20 in all
    answers = ["I cannot."] * refused + ["Sure."] * (20 - refused)
    said = []
    monkeypatch.setattr(refusals, "generate_answers", lambda *args, **options: answers)
    monkeypatch.setattr(refusals.logger, "warning", said.append)
    found = refusals.refusal_texts(peft_model(), TOKENIZER, prompts, source="own")
    assert found == (("I cannot.",) * refused if own else prompts.phrases.refusal)
    assert [f"got {refused} refusals among the model's answers to 20 plain" in text for text in said] == [True] * (
        not own
    )
    assert MetaConfig().refusal_targets == "own"


@pytest.mark.parametrize("order", ["first", "none"])
def test_a_nan_loss_stops_with_the_step_and_keeps_the_last_deltas(order, monkeypatch):
    model = peft_model()
    calls = []

    def failing(*args, **options):
        calls.extend([1] * torch.is_grad_enabled())  # losses before the first step are not counted
        loss = answer_loss(*args, **options)
        return loss * math.nan if len(calls) > 12 else loss

    monkeypatch.setattr(losses_of_families, "answer_loss", failing)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite at step [34] \(family"):
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, order=order))
    assert torch.isfinite(values_of(model)).all()
    assert values_of(model).any()
    assert all(isinstance(p, nn.Parameter) for p in find_deltas(model, {}).parameters)


def test_the_log_saves_loads_and_prints_itself(tmp_path):
    log = meta_train(peft_model(), TOKENIZER, PROMPTS, replace(SMALL, steps=3))
    log.save(tmp_path / "log.json")
    assert Log.load(tmp_path / "log.json") == log
    content = json.loads((tmp_path / "log.json").read_text())
    assert content["config"]["steps"] == 3
    assert content["prompt_set"] == PROMPTS.fingerprint
    assert "Training of 3 steps (order 'first')" in str(log)
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a training log"):
        Log.load(tmp_path / "log.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "third"}, "got order='third'; expected one of"),
        ({"refusal_targets": "mine"}, "got refusal_targets='mine'"),
        ({"steps": 0}, "got steps=0; expected a whole number of at least 1"),
        ({"steps": 2.5}, "got steps=2.5; expected a whole number"),
        ({"lr": -0.1}, "got lr=-0.1; expected a number of at least 0"),
        ({"lr": math.nan}, "got lr=nan"),
        ({"wrapped_size": -1}, "got wrapped_size=-1"),
        ({"bounds": {"safety": (0.5, 1.0)}}, "low <= 0 <= high"),
        ({"bounds": {"safety": (0.5,)}}, "low <= 0 <= high"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)


def frozen():
    model = peft_model()
    model.requires_grad_(False)
    return model


def merged():
    model = peft_model()
    model.merge_adapter()
    return model


def disabled():
    model = peft_model()
    model.disable_adapter_layers()
    return model


def at_half_strength():
    model = peft_model()
    model.set_strength(0.5)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny_llama, "expected a PeftModel with one active NeuronTune adapter"),
        (
            lambda: get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM")),
            "expected a PeftModel with one active",
        ),
        (frozen, "frozen.*is_trainable=True"),
        (merged, "merged into the weights.*unmerge_adapter"),
        (disabled, "disabled.*enable_adapter_layers"),
        (at_half_strength, r"strength other than 1.*set_strength\(1.0\)"),
    ],
)
def test_a_model_that_would_be_trained_without_effect_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        meta_train(make(), TOKENIZER, PROMPTS, SMALL)


@pytest.mark.parametrize("missing", ["harmful", "benign", "attacks"])
def test_a_prompt_set_that_cannot_train_is_refused(missing):
    prompts = replace(
        PROMPTS,
        prompts=tuple(p for p in PROMPTS.prompts if p.kind != missing),
        attacks=() if missing == "attacks" else PROMPTS.attacks,
    )
    model = peft_model()
    with pytest.raises(ValueError, match="expected at least two, one and one"):
        meta_train(model, TOKENIZER, prompts, SMALL)
    assert not values_of(model).any()
