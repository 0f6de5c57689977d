"""Greedy answers and reference answers by the model itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import IA3Config, get_peft_model
from torch import nn
from transformers.utils import logging

from neurontune_peft.prompts import PromptSet, complete_responses, generate_answers

PROMPTS = ["Name a bird.", "Hi", "Tell me a longer story, please.", "What is 9?", "Hi"]


def one_by_one(model: nn.Module, prompts: list[str], *, max_new_tokens: int, end: int = 2) -> list[str]:
    """Greedy answers without padding, batches, caches or `generate`."""
    tokenizer, answers = tiny_tokenizer(), []
    for prompt in prompts:
        ids = tokenizer(f"<bos><user>{prompt}<eos><assistant>", add_special_tokens=False)["input_ids"]
        new: list[int] = []
        while len(new) < max_new_tokens and end not in new:
            with torch.no_grad():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_answers_are_greedy_and_independent_of_the_batch_size(batch_size: int) -> None:
    model = tiny_llama()
    answers = generate_answers(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6, batch_size=batch_size)
    assert answers == one_by_one(model, PROMPTS, max_new_tokens=6)
    assert len(set(answers)) > 1


@pytest.mark.parametrize("where", ["model", "tokenizer"])
def test_an_answer_ends_at_the_end_token_of_the_model_or_else_of_the_tokenizer(where: str) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    free = one_by_one(model, PROMPTS[:1], max_new_tokens=6, end=-1)[0]
    with torch.no_grad():
        ids = tokenizer("<bos><user>Name a bird.<eos><assistant>", return_tensors="pt", add_special_tokens=False)
        third = int(model.generate(**ids, max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)[0, -1])
    model.generation_config.eos_token_id = third if where == "model" else None
    if where == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
        tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "eos")
    answer = generate_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=6)[0]
    assert len(answer) < len(free)


def test_no_prompts_give_no_answers() -> None:
    assert generate_answers(tiny_llama(), tiny_tokenizer(), []) == []


def test_modes_of_all_modules_and_the_tokenizer_are_left_as_they_were() -> None:
    model, tokenizer = tiny_llama().train(), tiny_tokenizer()
    model.model.layers[0].eval()
    modes, side = [m.training for m in model.modules()], tokenizer.padding_side
    generate_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=1)
    assert [m.training for m in model.modules()] == modes
    assert tokenizer.padding_side == side
    model.generate = lambda **_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        generate_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=1)
    assert [m.training for m in model.modules()] == modes


def test_dropout_is_off_while_answering() -> None:
    model = tiny_llama()
    expected = generate_answers(model, tiny_tokenizer(), PROMPTS, max_new_tokens=6)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    assert generate_answers(model.train(), tiny_tokenizer(), PROMPTS, max_new_tokens=6) == expected


def test_a_tokenizer_without_padding_token_uses_the_end_token_and_says_so_once() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4)
    tokenizer.pad_token = None
    with pytest.warns(UserWarning, match="without a padding token"):
        first = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4)
    again = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4)  # a second warning would be an error
    assert first == again == expected


def test_a_prompt_longer_than_the_context_is_shortened_with_a_warning() -> None:
    model = tiny_llama()
    model.config.max_position_embeddings = 24
    with pytest.warns(UserWarning, match="got 1 of 2 rows longer than 20 tokens"):
        assert len(generate_answers(model, tiny_tokenizer(), ["x" * 90, "Hi"], max_new_tokens=4)) == 2


@pytest.mark.parametrize("option", ["max_new_tokens", "batch_size"])
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"got {option} 0; expected at least 1; "):
        generate_answers(tiny_llama(), tiny_tokenizer(), PROMPTS, **{option: 0})


def complete(prompts: PromptSet, model: nn.Module, **options: object) -> PromptSet:
    options = {"max_new_tokens": 3, "batch_size": 2, **options}
    return complete_responses(prompts, model, tiny_tokenizer(), **options)  # type: ignore[arg-type]


def test_missing_responses_are_the_models_own_answers_and_others_are_kept() -> None:
    model, prompts = tiny_llama(), tiny_prompt_set()
    filled = complete(prompts, model)
    for before, after in zip(prompts.prompts, filled.prompts, strict=True):
        if before.response is not None or before.kind == "harmful":
            assert after == before
        else:
            assert after == replace(before, response=one_by_one(model, [before.prompt], max_new_tokens=3)[0])
    assert complete(filled, model) is filled
    assert complete(prompts, model, kinds=["benign"]).select(kind="borderline") == prompts.select(kind="borderline")


def test_a_peft_model_gives_reference_answers_with_its_adapters_disabled() -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["down_proj"], feedforward_modules=["down_proj"])
    tuned = get_peft_model(tiny_llama(), config)
    for name, parameter in tuned.named_parameters():
        if "ia3_l" in name:
            parameter.data.fill_(-3.0)
    base = complete(tiny_prompt_set(), tiny_llama())
    assert complete(tiny_prompt_set(), tuned) == base
    assert generate_answers(tuned, tiny_tokenizer(), PROMPTS) != generate_answers(
        tiny_llama(), tiny_tokenizer(), PROMPTS
    )


def test_progress_bars_obey_the_switch_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    logging.disable_progress_bar()
    try:
        complete(tiny_prompt_set(), tiny_llama())
    finally:
        logging.enable_progress_bar()
    assert capsys.readouterr().err == ""
    complete(tiny_prompt_set(), tiny_llama())
    assert "reference answers" in capsys.readouterr().err


def test_a_cache_answers_without_the_model(tmp_path: Path) -> None:
    cache, prompts = tmp_path / "cache.json", tiny_prompt_set()
    first = complete(prompts, tiny_llama(), cache=cache, fingerprint="one")
    broken = tiny_llama()
    broken.generate = lambda **_: 1 / 0  # type: ignore[method-assign]
    assert complete(prompts, broken, cache=cache, fingerprint="one") == first
    for other in ({"fingerprint": "two"}, {"max_new_tokens": 4}, {"chat_template": "{{ messages[0]['content'] }}"}):
        with pytest.raises(ZeroDivisionError):
            complete(prompts, broken, **{"cache": cache, "fingerprint": "one", **other})


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cache, prompts, model = tmp_path / "cache.json", tiny_prompt_set(), tiny_llama()
    generate, seen = model.generate, []

    def breaks_down(**inputs: torch.Tensor) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(inputs["input_ids"]))
        return generate(**inputs)

    model.generate = breaks_down  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        complete(prompts, model, cache=cache, fingerprint="one", batch_size=1)
    seen.clear()
    filled = complete(prompts, model, cache=cache, fingerprint="one", batch_size=1)
    assert len(seen) == 1  # two of three answers were there already
    assert filled == complete(prompts, tiny_llama())
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_caches_of_several_models_share_a_file(tmp_path: Path) -> None:
    cache, prompts = tmp_path / "cache.json", tiny_prompt_set()
    complete(prompts, tiny_llama(), cache=cache, fingerprint="one")
    complete(prompts, tiny_llama(seed=1), cache=cache, fingerprint="two")
    assert set(json.loads(cache.read_text())["answers"]) == {"one", "two"}


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 2, "answers": {}}'])
def test_a_file_that_is_no_cache_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text(text)
    with pytest.raises(ValueError, match=r"got .*cache\.json .*; expected .*; "):
        complete(tiny_prompt_set(), tiny_llama(), cache=cache, fingerprint="one")
    assert cache.read_text() == text


def test_a_cache_needs_a_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got a cache without a fingerprint"):
        complete(tiny_prompt_set(), tiny_llama(), cache=tmp_path / "cache.json")


def test_a_model_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = tiny_llama()
    with pytest.raises(ValueError, match="got a model on the meta device; expected real weights"):
        generate_answers(model, tiny_tokenizer(), ["Hello."])
