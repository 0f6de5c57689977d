"""Where prompts end: the generation prompts of ten common chat models, found whatever surrounds them."""

import pytest
import torch
from helpers import tiny_tokenizer
from triggers import dynamic_model

from neurontune_peft.prompts.chat import generation_suffix, turn_opening
from neurontune_peft.tuner.kept import flat_mask
from neurontune_peft.tuner.trigger import NOWHERE, prompt_ends, turns

LOOP = "{% for m in messages %}"
# Template, and the texts with which its prompts end and user's turns open: what turns look like in the formats of
# these models.
TEMPLATES = {
    "llama-3": (
        "<|begin_of_text|>" + LOOP + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>user<|end_header_id|>\n\n",
    ),
    "qwen (chatml)": (
        LOOP + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n",
        "<|im_start|>user\n",
    ),
    "mistral": (
        "<s>" + LOOP + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>"
        "{% endif %}{% endfor %}",
        " [/INST]",
        "[INST] ",
    ),
    "llama-2": (
        LOOP + "{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] | trim }} [/INST]{% else %} "
        "{{ m['content'] | trim }} </s>{% endif %}{% endfor %}",
        " [/INST]",
        "<s>[INST] ",
    ),
    "gemma": (
        "<bos>" + LOOP + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<start_of_turn>model\n",
        "<start_of_turn>user\n",
    ),
    "phi-3": (
        LOOP + "<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|assistant|>\n",
        "<|user|>\n",
    ),
    "zephyr": (
        LOOP + "<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|assistant|>\n",
        "<|user|>\n",
    ),
    "vicuna": (
        LOOP + "{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}"
        "ASSISTANT: {{ m['content'] }}</s>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "ASSISTANT:",
        "USER: ",
    ),
    "deepseek-r1": (
        "<bos>" + LOOP + "{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}"
        "<|Assistant|>{{ m['content'] }}"
        "<|end_of_sentence|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        "<|Assistant|><think>\n",
        "<|User|>",
    ),
    "command-r": (
        "<bos>" + LOOP + "<|START_OF_TURN_TOKEN|><|{{ 'CHATBOT' if m['role'] == 'assistant' else 'USER' }}_TOKEN|>"
        "{{ m['content'] }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    ),
    "alpaca (plain text)": (
        LOOP + "### {{ 'Instruction' if m['role'] == 'user' else 'Response' }}:\n{{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}",
        "### Response:\n",
        "### Instruction:\n",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_ends_where_the_answer_begins(name):
    template, end, _ = TEMPLATES[name]
    tokenizer = tiny_tokenizer(chat_template=template)
    suffix = generation_suffix(tokenizer)
    assert tokenizer.decode(suffix) == end
    chat = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    answered = prompt + "It is 4."
    rows = tokenizer([prompt, answered], add_special_tokens=False)["input_ids"]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        found = prompt_ends(batch["input_ids"], batch["attention_mask"], suffix).tolist()
        first = [0, 0] if side == "right" else [len(rows[1]) - len(rows[0]), 0]
        assert found == [start + len(rows[0]) - 1 for start in first]
    cut = torch.tensor(rows[:1])[:, 5:]  # truncated on the left
    assert prompt_ends(cut, None, suffix).item() == cut.shape[1] - 1
    cut = torch.tensor(rows[:1])[:, : -len(suffix)]  # truncated on the right: the turn before, or none
    assert prompt_ends(cut, None, suffix).item() in (NOWHERE, *range(cut.shape[1] - 14))


def test_padding_never_counts_as_a_generation_prompt():
    ids = torch.tensor([[7, 8, 9, 5, 7, 8], [7, 8, 5, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1]])
    assert prompt_ends(ids, mask, [7, 8]).tolist() == [1, 1]
    assert prompt_ends(ids, None, [7, 8]).tolist() == [5, 5]
    assert prompt_ends(ids, None, [4]).tolist() == [NOWHERE, NOWHERE]
    assert prompt_ends(ids, None, [7] * 9).tolist() == [NOWHERE, NOWHERE]


def test_a_tokenizer_without_template_has_no_generation_prompt():
    assert generation_suffix(tiny_tokenizer(chat_template=None)) is None
    assert generation_suffix(tiny_tokenizer(chat_template="{{ messages[0]['content'] }}")) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_users_turn_is_what_stands_between_its_opening_and_the_answer(name):
    template, end, opening = TEMPLATES[name]
    tokenizer = tiny_tokenizer(chat_template=template)
    ids = turn_opening(tokenizer)
    # These tokens are characters, some of which the marks before a first and a later turn share.
    assert tokenizer.decode(ids).endswith(opening)
    assert len(ids) <= len(opening) + 2
    suffix = generation_suffix(tokenizer)
    shown = []
    for before in ([], [("user", "Hello."), ("assistant", "Hi!")]):
        chat = [{"role": role, "content": text} for role, text in (*before, ("user", "What is 2 + 2?"))]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        rows = tokenizer([prompt, prompt + "It is 4."], add_special_tokens=False)["input_ids"]
        for side in ("left", "right"):
            tokenizer.padding_side = side
            batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
            found, mask = batch["input_ids"], batch["attention_mask"]
            turn = turns(found, mask, ids, prompt_ends(found, mask, suffix))
            shown += [tokenizer.decode(found[row][turn[row]]) for row in range(2)]
    assert len(set(shown)) == 1
    assert shown[0].startswith("What is 2 + 2?")
    assert shown[0].endswith(end)


def test_without_an_opening_the_turn_leaves_out_the_first_token():
    ids, mask = torch.arange(12).view(2, 6), torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    ends = torch.tensor([4, NOWHERE])
    expected = [[False, False, True, True, True, False], [False, True, True, True, False, False]]
    assert turns(ids, mask, None, ends).tolist() == expected
    assert turns(ids, mask, [99], ends).tolist() == expected
    assert turns(ids, mask, [2, 3], ends)[0].tolist() == [False, False, False, False, True, False]


def test_a_tokenizer_with_another_generation_prompt_gives_a_warning_that_shows_both():
    model, tokenizer = dynamic_model(), tiny_tokenizer()
    config = model.peft_config["default"]
    config.trigger_suffix, config.trigger_opening = generation_suffix(tokenizer), turn_opening(tokenizer)
    model.check_tokenizer(tokenizer, strict=True)
    other = tiny_tokenizer(chat_template=TEMPLATES["vicuna"][0])
    with pytest.warns(UserWarning, match=r"whose prompts end in 'ASSISTANT:' .*; expected '<assistant>' \(\[4\]\)"):
        model.check_tokenizer(other)
    with pytest.raises(ValueError, match="got a tokenizer whose prompts end in 'ASSISTANT:'"):
        model.check_tokenizer(other, strict=True)
    with pytest.raises(ValueError, match="got a tokenizer whose prompts end in nothing of their own"):
        model.check_tokenizer(tiny_tokenizer(chat_template=None), strict=True)
    config.trigger_opening = [7]
    with pytest.raises(ValueError, match=r"got a tokenizer whose user's turns open with '<user>' \(\[3\]\); expected"):
        model.check_tokenizer(tokenizer, strict=True)


def test_padding_is_read_from_whatever_form_a_mask_has():
    real = torch.tensor([[0, 1, 1], [1, 1, 1]])
    causal = torch.ones(3, 5, dtype=torch.bool).tril()  # a static cache has room for two more tokens
    attends = causal & torch.nn.functional.pad(real, (0, 2)).bool()[:, None, None]  # (2, 1, 3, 5)
    additive = torch.zeros(attends.shape).masked_fill(~attends, torch.finfo(torch.float32).min)
    for mask in (real, attends, additive, {"sliding_attention": attends}, {"a": None, "b": additive}):
        assert flat_mask(mask, 2, 3).tolist() == real.tolist()
    assert flat_mask(attends[1:], 2, 3).tolist() == [[True] * 3] * 2  # one mask for all rows
    for mask in (None, real[:, :2], attends[..., :2], {}, attends.expand(2, 1, 3, 5)[:, 0]):
        assert flat_mask(mask, 2, 3) is None
