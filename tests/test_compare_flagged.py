"""Controls behind NEURONTUNE's trigger: the same requests are flagged, and nothing else is touched."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny_llama
from peft import LoraConfig, get_peft_model
from test_compare import (
    COUNTS,
    DIALS,
    MANY,
    TOKENIZER,
    bench,
    lasting,
    small_compare,
    small_triggers,  # noqa: F401 - a fixture
)

from neurontune_peft.evaluation import likelihood
from neurontune_peft.evaluation.compare.flagged import for_flagged, trigger_of
from neurontune_peft.evaluation.compare.methods import METHODS
from neurontune_peft.evaluation.compare.routed import CannedRefusal, GateFlags, Routed, none_flagged
from neurontune_peft.prompts import encode, generate_answers
from neurontune_peft.training import MetaConfig, for_flagged_requests

TEXTS = ["Break it zz!", "Mend it ab.", "Break some other thing zz!", "Mend ab."]
PAIRS = [(text, "Yes.") for text in TEXTS]
SENTENCE = "No, I will not."


def lora_model():
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(target_modules=["down_proj"], init_lora_weights=False)).eval()


def flag_by_end(input_ids, attention_mask):
    texts = TOKENIZER.batch_decode(input_ids, skip_special_tokens=True)
    return ["zz!" in text for text in texts]


def test_flagged_requests_meet_the_adapter_and_all_others_the_base_model_whatever_batch_they_stand_in():
    model = lora_model()
    routed = Routed(model, flag_by_end)
    tuned = generate_answers(model, TOKENIZER, TEXTS, max_new_tokens=6)
    plain = generate_answers(tiny_llama(), TOKENIZER, TEXTS, max_new_tokens=6)
    assert all(one != other for one, other in zip(tuned, plain, strict=True))
    expected = [tuned[i] if "zz!" in text else plain[i] for i, text in enumerate(TEXTS)]
    for batch_size in (4, 1):
        assert generate_answers(routed, TOKENIZER, TEXTS, max_new_tokens=6, batch_size=batch_size) == expected


def test_likelihood_of_a_routed_model_is_that_of_the_model_that_answers():
    model, routed = lora_model(), Routed(lora_model(), flag_by_end)
    flagged = [pair for pair in PAIRS if "zz!" in pair[0]]
    harmless = [pair for pair in PAIRS if "zz!" not in pair[0]]
    base = Routed(routed.model, none_flagged)
    assert likelihood(routed, TOKENIZER, flagged, base=base) == pytest.approx(likelihood(model, TOKENIZER, flagged))
    perplexity, kl = likelihood(routed, TOKENIZER, harmless, base=base)
    assert perplexity == pytest.approx(likelihood(tiny_llama(), TOKENIZER, harmless)[0])
    assert kl == 0.0
    assert likelihood(routed, TOKENIZER, PAIRS, base=base)[1] > 0


def test_controls_on_flagged_requests_train_as_tune_does_but_for_their_own_rate_and_steps():
    own = MetaConfig(steps=7, lr=0.3, seed=5)
    assert for_flagged(own) == replace(for_flagged_requests(), steps=7, lr=0.3, seed=5)


def test_a_canned_refusal_is_the_sentence_and_costs_the_logarithm_of_the_vocabulary():
    base = tiny_llama()
    routed = Routed(base, flag_by_end, CannedRefusal(TOKENIZER, SENTENCE, 261))
    answers = generate_answers(routed, TOKENIZER, TEXTS, max_new_tokens=32)
    plain = generate_answers(base, TOKENIZER, TEXTS, max_new_tokens=32)
    assert answers == [SENTENCE if "zz!" in text else plain[i] for i, text in enumerate(TEXTS)]
    assert generate_answers(routed, TOKENIZER, TEXTS[:1], max_new_tokens=3) != answers[:1]
    flagged = [pair for pair in PAIRS if "zz!" in pair[0]]
    perplexity, kl = likelihood(routed, TOKENIZER, flagged, base=base)
    assert math.log(perplexity) == pytest.approx(math.log(261), abs=1e-5)
    assert 0 < kl < math.log(261)


def test_the_trigger_of_the_controls_decides_as_that_of_the_adapter():
    given = replace(bench(), prompts=MANY)
    with METHODS["neurontune-dynamic"].run(given, "neurontune-dynamic", 0) as made:
        batch = encode(TOKENIZER, TEXTS)
        with torch.no_grad(), made.model.trigger_log() as log:
            made.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        threshold = made.model.peft_config["default"].trigger_threshold
        assert made.numbers == 3 * sum(COUNTS.values()) + 2  # scales, and the trigger's
    gate, _, cost = trigger_of(given, 0)
    assert gate.scores(TEXTS) == pytest.approx([decision.score for decision in log], abs=1e-5)
    assert gate.threshold == threshold
    assert trigger_of(given, 0)[2] is cost  # fitted once for all controls
    assert cost.numbers == 2 * sum(COUNTS.values()) + 2
    assert cost.bytes > 2 * cost.numbers


def test_a_trigger_that_separates_nothing_flags_everything_as_the_static_adapter_does(monkeypatch):
    given = replace(bench(), prompts=MANY)
    monkeypatch.setattr("neurontune_peft.training.calibration.area_under_curve", lambda *args: 0.5)
    with pytest.warns(UserWarning, match="does not separate"):
        gate, _, cost = trigger_of(given, 0)
    batch = encode(TOKENIZER, TEXTS)
    assert gate is None
    assert GateFlags(gate)(batch.input_ids, batch.attention_mask) == [True] * 4
    assert cost.note.startswith("static")


def test_each_prompt_is_decided_once():
    calls = []

    class Gate:
        threshold = 0.5

        def scores_of(self, input_ids, attention_mask):
            calls.append(len(input_ids))
            return [1.0, None]

    flags, ids = GateFlags(Gate()), torch.tensor([[1, 2, 3], [0, 2, 3]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert flags(ids, mask) == flags(ids, mask) == [True, False]
    assert flags(ids[1:, 1:], mask[1:, 1:]) == [False]
    assert calls == [2]


@pytest.mark.parametrize("name", ["ia3-dynamic", "canned-refusal"])
def test_controls_behind_the_trigger_are_rows_like_the_others(tmp_path, name):
    options = {
        "prompts": MANY,
        "methods": ("base", name),
        "settings": dict.fromkeys(DIALS, ()),
        "checkpoint": tmp_path / "rows.jsonl",
    }
    model = tiny_llama()
    found = small_compare(model, **options)
    row = found.as_trained(name)
    assert row.setting == (None if name == "canned-refusal" else 1.0)
    assert row.numbers == 2 * sum(COUNTS.values()) + 2 + (0 if name == "canned-refusal" else 2 * 48)
    assert row.kl is not None
    assert row.note
    assert lasting(small_compare(model, **options).points) == lasting(found.points)


def test_too_few_prompts_for_a_trigger_are_said_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="train requests to calibrate the trigger on; expected at least"):
        small_compare(methods=("neurontune", "lora-dynamic"), checkpoint=tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())
