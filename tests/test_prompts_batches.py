"""Chat templates and batches."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny_tokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from neurontune_peft.prompts import encode, format_prompt
from neurontune_peft.prompts.batches import prompt_ids, token_ids

PROMPTS = ["Hi.", "A longer prompt", "Mid one"]
RESPONSES = ["Yes, it is.", "No", ""]


def test_a_prompt_stands_inside_the_chat_template() -> None:
    assert format_prompt(tiny_tokenizer(), "Hi {x}") == "<bos><user>Hi {x}<eos><assistant>"


def test_a_given_template_or_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    template = "Q: {{ messages[0]['content'] }} A:"
    path = tmp_path / "own.jinja"
    path.write_text(template)
    for given in (template, str(path), path):
        assert format_prompt(tiny_tokenizer(), "Hi", chat_template=given) == "Q: Hi A:"
    with pytest.raises(ValueError, match=r"got chat_template 'missing\.jinja'; expected a Jinja template or the path"):
        format_prompt(tiny_tokenizer(), "Hi", chat_template="missing.jinja")


def test_a_tokenizer_without_template_gives_plain_text_and_one_warning() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    with pytest.warns(UserWarning, match="without a chat template.*chat_template="):
        texts = [format_prompt(tokenizer, text) for text in PROMPTS]
    assert texts == ["Hi.\n", "A longer prompt\n", "Mid one\n"]
    encode(tokenizer, PROMPTS)  # a second warning would be an error


def test_plain_text_begins_with_the_special_token_that_the_tokenizer_puts_in_front() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    with pytest.warns(UserWarning, match="chat template"):
        ids = encode(tokenizer, ["Hi"]).input_ids
    assert ids.tolist() == tokenizer(["Hi\n"])["input_ids"]


def test_rows_hold_the_prompt_the_response_and_the_end() -> None:
    tokenizer = tiny_tokenizer()
    batch = encode(tokenizer, PROMPTS, RESPONSES)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        real = batch.input_ids[row][batch.attention_mask[row].bool()]
        assert tokenizer.decode(real) == f"<bos><user>{prompt}<eos><assistant>{response}<eos>"
        assert tokenizer.decode(batch.input_ids[row][batch.response_mask[row]]) == f"{response}<eos>"
    assert (batch.input_ids[~batch.attention_mask.bool()] == tokenizer.pad_token_id).all()
    assert len(batch) == 3


def test_without_eos_the_response_stands_alone() -> None:
    tokenizer = tiny_tokenizer()
    batch = encode(tokenizer, PROMPTS[:1], RESPONSES[:1], add_eos=False)
    assert tokenizer.decode(batch.input_ids[batch.response_mask]) == RESPONSES[0]


@pytest.mark.parametrize("responses", [None, RESPONSES])
def test_both_padding_sides_hold_the_same_tokens(responses: list[str] | None) -> None:
    right = encode(tiny_tokenizer(), PROMPTS, responses, padding_side="right")
    left = encode(tiny_tokenizer(), PROMPTS, responses, padding_side="left")
    assert right.attention_mask[:, 0].all()
    assert left.attention_mask[:, -1].all()
    for a, b in zip(
        *(zip(x.input_ids, x.attention_mask.bool(), x.response_mask, strict=True) for x in (left, right)), strict=True
    ):
        assert torch.equal(a[0][a[1]], b[0][b[1]])
        assert torch.equal(a[2][a[1]], b[2][b[1]])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("responses", [None, RESPONSES])
def test_last_prompt_is_the_token_before_the_answer(side: str, responses: list[str] | None) -> None:
    tokenizer = tiny_tokenizer()
    batch = encode(tokenizer, PROMPTS, responses, padding_side=side)
    last = batch.input_ids.gather(1, batch.last_prompt[:, None])
    assert tokenizer.convert_ids_to_tokens(last[:, 0].tolist()) == ["<assistant>"] * 3


def test_long_prompts_lose_their_middle_and_a_warning_counts_them() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.warns(UserWarning, match="got 1 of 2 rows longer than 20 tokens"):
        batch = encode(tokenizer, ["0123456789" * 3, "short"], ["yes", "no"], max_length=20)
    text = tokenizer.decode(batch.input_ids[0][batch.attention_mask[0].bool()])
    assert text == "<bos><user>01234556789<eos><assistant>yes<eos>".replace("01234556789", "012345" + "456789")
    assert batch.attention_mask.sum(dim=1).tolist() == [20, 12]


def test_a_response_longer_than_half_the_row_loses_its_end() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.warns(UserWarning, match="got 1 of 1 rows"):
        batch = encode(tokenizer, ["0123456789"], ["abcdefghijkl"], max_length=16)
    assert tokenizer.decode(batch.input_ids[batch.response_mask]) == "abcdefgh"
    assert batch.attention_mask.sum() == 16


def test_rows_that_fit_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(tiny_tokenizer(), PROMPTS, max_length=19).input_ids.shape == (3, 19)


def test_an_empty_list_gives_an_empty_batch() -> None:
    assert len(encode(tiny_tokenizer(), [])) == 0
    assert encode(tiny_tokenizer(), [], []).input_ids.shape == (0, 0)


def slow_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes again, in Python, with a template that holds special tokens of its own."""
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokenizer.chat_template = "{% for m in messages %}{{ '<pad>' + m['content'] + '</s>' }}{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, slow_tokenizer], ids=["fast", "slow"])
def test_texts_have_the_same_tokens_together_and_one_by_one(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    special = tokenizer.all_special_tokens[:3]
    texts = ["", "Hi.", " ", "\n", "naïve 語 \U0001f600", *special, f"a{special[0]} b", "x" * 700, "Hi."]
    one_by_one = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert token_ids(tokenizer, texts) == one_by_one
    assert token_ids(tokenizer, tuple(texts)) == one_by_one
    shown = [format_prompt(tokenizer, text) for text in texts]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in shown]
    assert prompt_ids(tokenizer, texts) == expected
    assert token_ids(tokenizer, []) == prompt_ids(tokenizer, []) == []


def test_settings_that_a_tokenizer_brings_neither_cut_nor_pad_prompts() -> None:
    tokenizer = tiny_tokenizer()
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=30)
    assert token_ids(tokenizer, PROMPTS) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"responses": ["one"]}, "got 1 responses for 3 prompts"),
        ({"padding_side": "middle"}, "got padding_side 'middle'"),
        ({"max_length": 1}, "got max_length 1"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*; expected .*; "):
        encode(tiny_tokenizer(), PROMPTS, **options)


def test_a_batch_moves_to_a_device() -> None:
    moved = encode(tiny_tokenizer(), PROMPTS).to("meta")
    assert {t.device.type for t in (moved.input_ids, moved.attention_mask, moved.response_mask)} == {"meta"}
