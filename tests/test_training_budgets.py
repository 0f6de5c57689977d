"""Budgets: known optima are found, walls hold, and a run says which budgets it met."""

import math
from dataclasses import replace

import pytest
import torch
from training_helpers import PROMPTS, SMALL, TOKENIZER, interrupted_after, peft_model, toy_deltas, values_of

from neurontune_peft.objectives import RefusalMargin, kl_to_base, response_logits, target_log_prob
from neurontune_peft.prompts import encode
from neurontune_peft.training import Log, MetaConfig, loop, meta_train
from neurontune_peft.training.budgets import Budget, Pressure, barrier_loss, step_back_
from neurontune_peft.training.deltas import find_deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.inner import Task
from neurontune_peft.training.refusals import margin_of
from neurontune_peft.training.state import LoopState
from neurontune_peft.training.tasks import TaskSampler

TOY = MetaConfig(order="none", steps=600, lr=0.05, kl_budget=1.0)


def learn_toy(config, *, noise=0.0):
    """Minimise (x - 2)^2 + (y - 1)^2 where x may cost at most the budget: optimum (1, 1), multiplier 2."""
    deltas = toy_deltas(torch.zeros(2))
    state = LoopState(deltas, torch.optim.Adam(deltas.parameters, lr=config.lr))
    seen = []

    def loss(values):
        seen.append(values[0].detach().clone())
        return (values[0] - torch.tensor([2.0, 1.0])).square().sum()

    def draw(number):
        shift = noise * math.sin(number)
        return Task(
            "toy",
            loss,
            loss,
            lambda values: {"kl": values[0].sum() * 0, "nll": values[0].sum() * 0, "kl_budget": values[0][0] + shift},
        )

    loop.learn(state, draw, config, measure=lambda values: {"kl_budget": values[0][0].item()})
    return deltas.parameters[0].detach(), state, seen


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_lagrangian_finds_a_known_optimum_and_its_multiplier(noise):
    values, state, _ = learn_toy(TOY, noise=noise)
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0]), atol=0.03, rtol=0)
    assert state.pressure.multipliers["kl_budget"] == pytest.approx(2.0, abs=0.2)
    assert state.history[0].multipliers == {"kl_budget": 0.0}
    assert state.history[-1].multipliers["kl_budget"] > 1.5


def test_a_budget_that_does_not_bind_changes_nothing():
    values, state, _ = learn_toy(replace(TOY, kl_budget=3.0))
    torch.testing.assert_close(values, torch.tensor([2.0, 1.0]), atol=1e-2, rtol=0)
    assert state.pressure.multipliers["kl_budget"] == pytest.approx(0.0, abs=0.05)


def test_walls_are_never_crossed_and_the_optimum_is_approached():
    values, _, seen = learn_toy(replace(TOY, barrier=True, lr=0.3))
    assert all(value[0] <= 1 for value in seen)
    assert 0.95 < values[0] <= 1
    assert values[1] == pytest.approx(1.0, abs=0.02)


def test_pressure_follows_its_formula():
    pressure = Pressure({"kl_budget": 0.5}, {"kl_budget": 0.2})
    costs = {"kl_budget": torch.tensor(0.03, requires_grad=True)}
    loss = pressure.loss(costs, {"kl_budget": 0.02})  # excess 0.5
    assert loss.item() == pytest.approx((1.0**2 - 0.5**2) / 2)
    assert torch.autograd.grad(loss, costs["kl_budget"])[0].item() == pytest.approx(1.0 / 0.02)
    after = pressure.after({"kl_budget": 0.03}, {"kl_budget": 0.02})
    assert after.means["kl_budget"] == pytest.approx(0.9 * 0.2 + 0.1 * 0.5)
    assert after.multipliers["kl_budget"] == pytest.approx(0.5 + 0.1 * after.means["kl_budget"])
    idle = Pressure({"kl_budget": 0.01}, {"kl_budget": -1.0}).after({"kl_budget": 0.0}, {"kl_budget": 0.02})
    assert idle.multipliers == {"kl_budget": 0.0}


def test_the_wall_is_a_logarithm_that_goes_on_as_its_tangent():
    limits, weight = {"kl_budget": 1.0}, 0.5  # the tangent takes over at an excess of -0.25
    points = torch.tensor([0.5, 0.75 - 1e-6, 0.75 + 1e-6, 1.5], requires_grad=True)
    losses = torch.stack([barrier_loss({"kl_budget": point}, limits, weight) for point in points])
    slopes = torch.autograd.grad(losses.sum(), points)[0]
    expected = [-0.5 * math.log(0.5), -0.5 * math.log(0.25), -0.5 * math.log(0.25)]
    torch.testing.assert_close(losses[:3], torch.tensor(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(slopes, torch.tensor([1.0, 2.0, 2.0, 2.0]), atol=1e-3, rtol=0)
    assert losses[3].item() == pytest.approx(expected[1] + 0.75 * 2, abs=1e-4)


def test_a_step_is_halved_until_it_fits_or_taken_back():
    deltas = toy_deltas(torch.tensor([4.0]))
    step_back_(deltas, [torch.zeros(1)], lambda values: values[0].item() <= 1)
    assert deltas.parameters[0].item() == 1.0
    step_back_(deltas, [torch.zeros(1)], lambda values: values[0].item() < 0)
    assert deltas.parameters[0].item() == 0.0


def test_the_costs_of_a_model_are_what_their_names_say():
    torch.manual_seed(1)
    model = peft_model(init_weights=False)
    config = replace(
        SMALL, over_refusal_budget=0.1, wrapped_benign_budget=0.1, kl_budget=0.1, perplexity_budget=0.1, benign_size=2
    )
    deltas, margin = find_deltas(model, {}), margin_of(TOKENIZER, PROMPTS, 2)
    sampler = TaskSampler(PROMPTS, config, ("No.",))
    families = Families(model, TOKENIZER, deltas, sampler, config, margin=margin)
    data = sampler.draw(0)
    costs = families.draw(0).costs(deltas.parameters)
    texts, answers = zip(*data.utility, strict=True)
    batch = encode(TOKENIZER, texts, answers)
    borderline, wrapped = (encode(TOKENIZER, [texts[place]]) for place in (2, 3))
    with torch.no_grad():
        with model.disable_adapter():
            logits, base_nll = response_logits(model, batch), -target_log_prob(model, batch)
            base = [torch.sigmoid(margin(model, part)).mean() for part in (borderline, wrapped)]
        tuned = [torch.sigmoid(margin(model, part)).mean() for part in (borderline, wrapped)]
        lengths = batch.response_mask.sum(dim=1)[:2]
        rise = ((-target_log_prob(model, batch) - base_nll)[:2] * lengths).sum() / lengths.sum()
        torch.testing.assert_close(costs["kl_budget"], kl_to_base(model, batch, logits).mean())
    torch.testing.assert_close(costs["perplexity_budget"], rise.exp() - 1)
    torch.testing.assert_close(costs["over_refusal_budget"], tuned[0] - base[0])
    torch.testing.assert_close(costs["wrapped_benign_budget"], tuned[1] - base[1])
    assert data.kinds == ("benign", "benign", "borderline", "wrapped")


def test_the_base_model_costs_nothing():
    config = replace(SMALL, over_refusal_budget=0.1, wrapped_benign_budget=0.1, kl_budget=0.1, perplexity_budget=0.1)
    model = peft_model()
    deltas = find_deltas(model, {})
    sampler = TaskSampler(PROMPTS, config, ("No.",))
    families = Families(model, TOKENIZER, deltas, sampler, config, margin=margin_of(TOKENIZER, PROMPTS, 2))
    costs = families.draw(0).costs(deltas.parameters)
    assert all(abs(costs[name].item()) < 1e-6 for name in costs if name.endswith("budget"))


@pytest.mark.parametrize("barrier", [False, True])
def test_a_run_keeps_to_its_budgets_and_says_so(barrier, tmp_path):
    free, bound = peft_model(), peft_model()
    meta_train(free, TOKENIZER, PROMPTS, replace(SMALL, steps=24, lr=0.2, utility_weight=0.0))
    config = replace(SMALL, steps=24, lr=0.2, kl_budget=0.01, perplexity_budget=0.5, barrier=barrier)
    log = meta_train(bound, TOKENIZER, PROMPTS, config)
    assert [budget.name for budget in log.budgets] == ["kl_budget", "perplexity_budget"]
    assert all(budget.met for budget in log.budgets)
    assert 0 < values_of(bound).abs().sum() < values_of(free).abs().sum()
    assert "kl_budget 0.01: met (" in str(log)
    if barrier:
        assert all(entry.costs["kl_budget"] <= 0.01 for entry in log.validations)
    else:
        assert max(entry.multipliers["kl_budget"] for entry in log.steps) > 0
    log.save(tmp_path / "log.json")
    assert Log.load(tmp_path / "log.json") == log


def test_a_run_with_budgets_resumes_with_the_same_bits(tmp_path, monkeypatch):
    config = replace(SMALL, kl_budget=1e-3, over_refusal_budget=0.01, lr=0.2)
    whole, stopped = peft_model(), peft_model()
    log = meta_train(whole, TOKENIZER, PROMPTS, config)
    with interrupted_after(4, monkeypatch):
        meta_train(stopped, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run")
    assert meta_train(stopped, TOKENIZER, PROMPTS, config, checkpoint=tmp_path / "run") == log
    assert torch.equal(values_of(whole), values_of(stopped))


def test_a_budget_that_was_missed_is_called_missed():
    assert str(Budget("kl_budget", 0.01, 0.02)) == "kl_budget 0.01: NOT met (0.02)"
    assert str(Budget("kl_budget", 0.01, 0.01)) == "kl_budget 0.01: met (0.01)"


def test_the_margin_takes_openings_evenly():
    margin = margin_of(TOKENIZER, PROMPTS, 2)
    whole = RefusalMargin.from_texts(TOKENIZER, refusal=["Sorry, no.", "I can't."], compliance=["Sure", "Yes, here"])
    assert margin == whole
    assert margin_of(TOKENIZER, PROMPTS, 9).rows_per_example == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over_refusal_budget": 0.0}, r"base model itself breaks.*limit the rise over the base model"),
        ({"kl_budget": -0.1}, r"got kl_budget=-0.1, which the base model itself breaks"),
        ({"perplexity_budget": math.nan}, r"got perplexity_budget=nan"),
        ({"barrier": True}, r"expected at least one budget"),
        ({"margin_phrases": 0}, r"got margin_phrases=0"),
    ],
)
def test_impossible_budgets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaConfig(**options)


def test_a_budget_without_its_prompts_is_refused_before_anything_changes():
    prompts = replace(PROMPTS, prompts=tuple(p for p in PROMPTS.prompts if p.kind != "borderline"))
    model = peft_model()
    with pytest.raises(ValueError, match=r"over_refusal_budget without borderline train prompts"):
        meta_train(model, TOKENIZER, prompts, replace(SMALL, over_refusal_budget=0.02))
    assert not values_of(model).any()


def test_walls_around_a_start_outside_are_refused():
    torch.manual_seed(1)
    model = peft_model(init_weights=False)
    before = values_of(model)
    with pytest.raises(ValueError, match=r"already exceed a budget \(kl_budget 0.0001: NOT met.*barrier=False"):
        meta_train(model, TOKENIZER, PROMPTS, replace(SMALL, kl_budget=1e-4, barrier=True))
    assert torch.equal(values_of(model), before)
