"""Objectives against plain references, whatever the padding, the batch and the architecture."""

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, tiny_model
from helpers import tiny_llama, tiny_tokenizer
from peft import IA3Config, get_peft_model
from torch import Tensor, nn

from neurontune_peft.objectives import RefusalMargin, kl_of_logits, kl_to_base, response_logits, target_log_prob
from neurontune_peft.prompts import Batch, encode

PROMPTS = ["Hi.", "A much longer prompt", "Mid one"]
RESPONSES = ["Yes, it is.", "No", "Maybe so"]
MARGIN = RefusalMargin(((10, 11, 12), (20,)), ((30, 31), (40,), (50, 51, 52, 53)))
SIDES = ["left", "right"]


def log_prob(model: nn.Module, head: list[int], tail: list[int]) -> Tensor:
    """Mean log-probability of `tail` after `head`: one row, no padding, float64 softmax."""
    logits = model(torch.tensor([head + tail])).logits[0].double()
    picked = logits.log_softmax(-1)[torch.arange(len(head) - 1, len(head) + len(tail) - 1), torch.tensor(tail)]
    return picked.mean()


def halves(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """Prompt and response of a row, as token ids."""
    prompt = batch.attention_mask[row].bool() & ~batch.response_mask[row]
    return batch.input_ids[row][prompt].tolist(), batch.input_ids[row][batch.response_mask[row]].tolist()


def batch_of_ids(side: str, *, responses: bool = True, vocabulary: int = 64) -> Batch:
    """Three rows of different lengths for the models of `architectures`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (3, 9), generator=generator)
    attention = torch.zeros(3, 9, dtype=torch.long)
    response = torch.zeros(3, 9, dtype=torch.bool)
    for row, (head, tail) in enumerate([(3, 2), (5, 4), (2, 1)]):
        tail = tail if responses else 0
        start = 9 - head - tail if side == "left" else 0
        attention[row, start : start + head + tail] = 1
        response[row, start + head : start + head + tail] = True
    return Batch(ids * attention, attention, response)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_target_log_prob_is_that_of_each_row_alone(architecture: str, side: str) -> None:
    model, batch = tiny_model(architecture), batch_of_ids(side)
    expected = torch.stack([log_prob(model, *halves(batch, row)) for row in range(3)])
    torch.testing.assert_close(target_log_prob(model, batch).double(), expected, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_refusal_margin_is_that_of_each_row_and_opening_alone(architecture: str, side: str) -> None:
    model, batch = tiny_model(architecture), batch_of_ids(side, responses=False)
    expected = []
    for row in range(3):
        head, _ = halves(batch, row)
        refusal, compliance = (
            torch.stack([log_prob(model, head, list(ids)) for ids in openings]).mean()
            for openings in (MARGIN.refusal_ids, MARGIN.compliance_ids)
        )
        expected.append(refusal - compliance)
    torch.testing.assert_close(MARGIN(model, batch).double(), torch.stack(expected), atol=2e-5, rtol=0)


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch_or_on_extra_padding() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for objective, responses in ((target_log_prob, RESPONSES), (MARGIN, None)):
        for side in SIDES:
            whole = objective(model, encode(tokenizer, PROMPTS, responses, padding_side=side))
            alone = [
                objective(model, encode(tokenizer, PROMPTS[i : i + 1], responses and responses[i : i + 1]))
                for i in range(3)
            ]
            torch.testing.assert_close(whole, torch.cat(alone), atol=2e-5, rtol=0)


def test_row_b_times_p_plus_p_holds_prompt_b_and_opening_p_in_one_call() -> None:
    model, batch, calls = tiny_llama(), encode(tiny_tokenizer(), PROMPTS, padding_side="left"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    MARGIN(model, batch)
    target_log_prob(model, encode(tiny_tokenizer(), PROMPTS, RESPONSES))
    assert [len(call["input_ids"]) for call in calls] == [
        3 * MARGIN.rows_per_example,
        3 * target_log_prob.rows_per_example,
    ]
    openings = MARGIN.refusal_ids + MARGIN.compliance_ids
    for b in range(3):
        head, _ = halves(batch, b)
        for p, opening in enumerate(openings):
            row = b * MARGIN.rows_per_example + p
            real = calls[0]["attention_mask"][row].bool()
            assert calls[0]["input_ids"][row][real].tolist() == head + list(opening)


@pytest.mark.parametrize("objective", [target_log_prob, MARGIN], ids=["target_log_prob", "margin"])
def test_gates_repeated_by_rows_per_example_get_each_examples_own_gradient(objective: object) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    responses = None if objective is MARGIN else RESPONSES
    site = model.model.layers[0].mlp.down_proj

    def gradient(batch: Batch) -> Tensor:
        gate = torch.ones(len(batch), 48, requires_grad=True)
        rows = gate.repeat_interleave(objective.rows_per_example, dim=0)[:, None]  # type: ignore[attr-defined]
        hook = site.register_forward_pre_hook(lambda _, args: (args[0] * rows,))
        objective(model, batch).sum().backward()  # type: ignore[operator]
        hook.remove()
        return gate.grad

    whole = gradient(encode(tokenizer, PROMPTS, responses))
    alone = [gradient(encode(tokenizer, PROMPTS[i : i + 1], responses and responses[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-6, rtol=1e-4)


def test_objectives_can_be_differentiated_twice() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.config._attn_implementation = "eager"
    weight = model.model.layers[1].mlp.down_proj.weight
    batch = encode(tokenizer, PROMPTS, RESPONSES)
    base = response_logits(model, batch).detach() + 0.1 * torch.randn(1, 261)
    for value in (
        target_log_prob(model, batch).sum(),
        MARGIN(model, encode(tokenizer, PROMPTS)).sum(),
        kl_to_base(model, batch, base).sum(),
    ):
        (first,) = torch.autograd.grad(value, weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        assert torch.isfinite(second).all()
        assert second.abs().sum() > 0


@torch.no_grad()
def test_wrapped_models_give_the_same_numbers() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    batch = encode(tokenizer, PROMPTS, RESPONSES, padding_side="left")
    expected = target_log_prob(model, batch)
    wrapped = get_peft_model(
        model, IA3Config(task_type="CAUSAL_LM", target_modules=["down_proj"], feedforward_modules=["down_proj"])
    )
    assert torch.equal(target_log_prob(wrapped.eval(), batch), expected)


@torch.no_grad()
def test_numbers_are_float32_for_a_bfloat16_model() -> None:
    model, tokenizer = tiny_llama().bfloat16(), tiny_tokenizer()
    value = target_log_prob(model, encode(tokenizer, PROMPTS, RESPONSES))
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value, target_log_prob(tiny_llama(), encode(tokenizer, PROMPTS, RESPONSES)), atol=0.05, rtol=0.05
    )


def test_extreme_logits_stay_finite() -> None:
    class Sure(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
            logits = F.one_hot(input_ids, 300).float() * 1e4
            return type("Output", (), {"logits": logits})()

    batch = encode(tiny_tokenizer(), PROMPTS, RESPONSES)
    assert torch.isfinite(target_log_prob(Sure(), batch)).all()
    assert torch.isfinite(MARGIN(Sure(), encode(tiny_tokenizer(), PROMPTS))).all()


@torch.no_grad()
def test_kl_is_zero_for_the_base_itself_and_the_textbook_sum_otherwise() -> None:
    base, tuned, tokenizer = tiny_llama(), tiny_llama(seed=1), tiny_tokenizer()
    for side in SIDES:
        batch = encode(tokenizer, PROMPTS, RESPONSES, padding_side=side)
        logits = response_logits(base, batch)
        assert len(logits) == int(batch.response_mask.sum())
        torch.testing.assert_close(kl_to_base(base, batch, logits), torch.zeros(3), atol=1e-6, rtol=0)
        p, q = logits.double().softmax(-1), response_logits(tuned, batch).double().softmax(-1)
        tokens = (p * (p / q).log()).sum(-1)
        expected = torch.stack([part.mean() for part in tokens.split(batch.response_mask.sum(dim=1).tolist())])
        torch.testing.assert_close(kl_to_base(tuned, batch, logits).double(), expected, atol=1e-5, rtol=1e-5)


def test_kl_has_the_base_on_the_left() -> None:
    base, tuned = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_of_logits(base, tuned).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)


def test_a_row_without_response_counts_zero_among_others() -> None:
    tokenizer = tiny_tokenizer()
    batch = encode(tokenizer, ["Hi", "Hi"], ["", "yes"], add_eos=False)
    assert target_log_prob(tiny_llama(), batch)[0] == 0


def test_wrong_batches_and_openings_are_refused() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with pytest.raises(ValueError, match=r"got a batch without responses; expected .*; "):
        target_log_prob(model, encode(tokenizer, PROMPTS))
    with pytest.raises(ValueError, match=r"got a batch with responses; expected prompts only.*; "):
        MARGIN(model, encode(tokenizer, PROMPTS, RESPONSES))
    for refusal, compliance in (((), ((1,),)), (((1,),), ((),))):
        with pytest.raises(ValueError, match=r"got (refusal|compliance)_ids .*; expected .*; "):
            RefusalMargin(refusal, compliance)


def test_openings_are_tokenised_without_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    margin = RefusalMargin.from_texts(tokenizer, refusal=["No."], compliance=["Sure", "Ok"])
    assert tokenizer.decode(list(margin.refusal_ids[0])) == "No."
    assert margin.rows_per_example == 3
