"""The strength of each row is decided where its prompt ends, and the row runs as if it were alone at that strength."""

import copy
import pickle
import threading

import pytest
import torch
from adapters import randomize, tuned_model
from architectures import tiny_model, tokens
from helpers import tiny_llama, tiny_tokenizer
from peft import get_peft_model, inject_adapter_in_model
from test_experts import COMMON
from test_experts import TYPES as EXPERTS
from torch._dynamo.testing import CompileCounter
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache, pipeline
from triggers import (
    SUFFIX,
    decisions,
    dynamic_config,
    dynamic_model,
    logits,
    neuron_layers,
    requests,
    set_random_triggers,
    split_in_half,
    triggered,
)

from neurontune_peft import Neurons, find_sites, trigger_log

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "suppress_tokens": SUFFIX}
TYPES = ("llama", "gpt2", "gemma3_text", "opt")


def padded(ids: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several lengths: row i loses its first i tokens."""
    rows, masks = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, whole in enumerate(ids):
        kept = whole[row % 4 :]
        place = slice(len(whole) - len(kept), None) if side == "left" else slice(0, len(kept))
        rows[row, place], masks[row, place] = kept, 1
    return rows, masks


@pytest.mark.parametrize("model_type", TYPES)
def test_rows_that_trigger_run_with_the_adapter_and_others_are_the_base_model_bit_for_bit(model_type):
    model, ids = dynamic_model(model_type), requests()
    fires = triggered(model, ids)
    assert sum(fires) == 3
    found = logits(model, ids)
    on, off = logits(model, ids, neurontune_strength=[1.0] * 6), logits(tiny_model(model_type), ids)
    for row, fired in enumerate(fires):
        torch.testing.assert_close(found[row], (on if fired else off)[row], rtol=1e-5, atol=1e-5)
        if not fired:
            assert torch.equal(found[row], off[row])
    assert not torch.allclose(on, off, atol=1e-2)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", TYPES)
def test_each_row_of_a_padded_batch_equals_the_row_alone(model_type, side):
    model = dynamic_model(model_type)
    ids, mask = padded(requests(), side)
    together = logits(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for row in range(6):
        real = mask[row].bool()
        alone = logits(model, ids[row : row + 1, real])
        torch.testing.assert_close(together[row, real], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 3}],
    ids=str,
)
def test_generation_gives_each_row_the_answer_it_gets_alone(options):
    model, ids = dynamic_model(), requests()
    assisted = "prompt_lookup_num_tokens" in options
    rows = [model.generate(input_ids=ids[row : row + 1], **GREEDY | options)[0] for row in range(6)]
    together = torch.stack(rows) if assisted else model.generate(input_ids=ids, **GREEDY | options)
    assert torch.equal(torch.stack(rows), together)
    forced = model.generate(
        input_ids=ids,
        neurontune_strength=[float(t) for t in triggered(model, ids)],
        **GREEDY | {"num_beams": options.get("num_beams", 1)},
    )
    assert torch.equal(together, forced)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_logits_of_generation_equal_those_of_teacher_forcing(model_type, cache):
    model = dynamic_model(model_type)
    ids, mask = padded(requests(), "left")
    fires = triggered(model, ids, attention_mask=mask)
    assert 0 < sum(fires) < 6
    options = GREEDY | {
        "output_logits": True,
        "return_dict_in_generate": True,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    with model.trigger_log() as log:
        out = model.generate(input_ids=ids, attention_mask=mask, **options)
    alone = [decisions(model, ids[row : row + 1, mask[row] == 1])[0].score for row in range(6)]
    assert [decision.score for decision in log] == pytest.approx(alone, abs=1e-5)  # padding counts in no mean
    full = torch.cat([mask, torch.ones(6, 6, dtype=mask.dtype)], dim=1)
    forced = logits(model, out.sequences, attention_mask=full, position_ids=(full.cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(forced[:, 7:-1], torch.stack(out.logits, dim=1), rtol=1e-4, atol=1e-4)


def next_turn(model, ids: torch.Tensor, *, triggers: bool) -> torch.Tensor:
    """A conversation with one more request, which does or does not trigger."""
    ids = torch.cat([ids, requests(1, 4, seed=ids.shape[1])], dim=1)
    score = decisions(model, ids)[0].score
    model.peft_config["default"].trigger_threshold = score - 0.1 if triggers else score + 0.1
    return ids


def test_in_a_conversation_the_last_turn_decides():
    model, ids = dynamic_model(), torch.empty(1, 0, dtype=torch.long)
    for triggers in (False, True, False):
        ids = next_turn(model, ids, triggers=triggers)
        expected = logits(model, ids, neurontune_strength=[float(triggers)])
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-5, atol=1e-5)
        ids = torch.cat([ids, tokens(1, 3, seed=ids.shape[1]) % 57 + 3], dim=1)


def test_a_conversation_that_keeps_its_cache_gives_the_answers_of_one_that_does_not():
    model, ids, cache = dynamic_model(), torch.empty(1, 0, dtype=torch.long), DynamicCache()
    for triggers in (False, True, False, False, True):
        ids = next_turn(model, ids, triggers=triggers)
        fresh, score = model.generate(input_ids=ids, **GREEDY), decisions(model, ids)[0].score
        with model.trigger_log() as log:
            ids = model.generate(input_ids=ids, past_key_values=cache, **GREEDY)
        assert [decision.strength for decision in log] == [float(triggers)]
        assert log[0].score == pytest.approx(score, abs=1e-6)
        assert torch.equal(ids, fresh)


def test_a_prompt_that_arrives_in_pieces_is_decided_as_a_whole():
    model, ids = dynamic_model(), requests()
    whole = logits(model, ids)
    cache = DynamicCache()
    parts = [logits(model, part, past_key_values=cache) for part in (ids[:, :3], ids[:, 3:7], ids[:, 7:])]
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(parts[-1][:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 4])
def test_a_score_is_the_weighted_activations_at_the_prompts_end_and_their_highest_mean_in_the_turn(window):
    model = dynamic_model(trigger_bias=0.25, trigger_window=window)
    ids = torch.cat([tokens(6, 3) % 56 + 3, requests()], dim=1)  # something before the turn opens, at token 3
    read = {}

    def keep(module, args):
        read.setdefault(module, args[0])

    layers = neuron_layers(model)
    for layer in layers:
        layer.get_base_layer().register_forward_pre_hook(keep)
    scores = [decision.score for decision in decisions(model, ids)]
    expected, each = torch.full((6,), 0.25), torch.zeros(6, 7)
    for layer in layers:
        hidden = read[layer.get_base_layer()][..., layer.neurontune_index["default"].long()]
        weights = layer.neurontune_trigger["default"].float()
        expected += hidden[:, -1] @ weights[:, 0]
        each += hidden[:, 4:] @ weights[:, 1]  # seven tokens: those of four, from each second one on
    windows = [each] if window is None else [each[:, :4], each[:, 2:6], each[:, 4:]]
    expected += torch.stack([part.mean(dim=1) for part in windows]).amax(dim=0)
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 2, 4])
def test_the_means_of_a_prompt_in_pieces_are_those_of_the_whole(window):
    model, ids = dynamic_model(trigger_window=window), requests()
    whole = [decision.score for decision in decisions(model, ids)]
    cache = DynamicCache()
    for part in (ids[:, :3], ids[:, 3:6]):
        logits(model, part, past_key_values=cache)
    pieces = [decision.score for decision in decisions(model, ids[:, 6:], past_key_values=cache)]
    assert pieces == pytest.approx(whole, abs=1e-6)


def rows_per_call(model, **options):
    """How many rows the base model computes, call by call."""
    sizes = []
    layer = neuron_layers(model)[0].get_base_layer()
    handle = layer.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
    with torch.no_grad():
        output = model(**options)
    handle.remove()
    return sizes, output


def test_only_the_rows_that_trigger_are_prefilled_again():
    model, ids = dynamic_model(), requests()
    fires = triggered(model, ids)
    expected = logits(model, ids, neurontune_strength=[float(fired) for fired in fires])
    for options in ({}, {"use_cache": False}, {"past_key_values": DynamicCache()}):
        sizes, output = rows_per_call(model, input_ids=ids, **options)
        assert sizes == [6, sum(fires)]
        torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_holds_the_states_of_the_rows_that_were_prefilled_again():
    model, ids, cache, expected = dynamic_model(), requests(), DynamicCache(), DynamicCache()
    logits(model, ids, past_key_values=cache)
    strengths = [float(fired) for fired in triggered(model, ids)]
    logits(model, ids, past_key_values=expected, neurontune_strength=strengths)
    plain = DynamicCache()
    logits(tiny_model(), ids, past_key_values=plain)
    assert not torch.allclose(expected.layers[-1].keys, plain.layers[-1].keys)
    for found, wanted in zip(cache.layers, expected.layers, strict=True):
        torch.testing.assert_close(found.keys, wanted.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.values, wanted.values, rtol=1e-5, atol=1e-5)


def test_outputs_whose_rows_are_not_known_are_computed_again_as_a_whole():
    model, ids = dynamic_model(), requests()
    fires = triggered(model, ids)
    strengths = [float(fired) for fired in fires]
    for options in ({"output_hidden_states": True}, {"labels": ids}):
        sizes, output = rows_per_call(model, input_ids=ids, **options)
        assert sizes == [6, 6]
        with torch.no_grad():
            expected = model(input_ids=ids, neurontune_strength=strengths, **options)
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
        if "labels" in options:
            torch.testing.assert_close(output.loss, expected.loss)
        else:
            torch.testing.assert_close(output.hidden_states[-1], expected.hidden_states[-1], rtol=1e-5, atol=1e-5)


def test_a_row_without_prompt_end_runs_at_strength_off():
    model, ids = dynamic_model(), tokens() % 57 + 3
    assert [(d.position, d.score, d.strength) for d in decisions(model, ids)] == [(None, None, 0.0)] * 2
    assert torch.equal(logits(model, ids), logits(tiny_model(), ids))


def test_without_known_generation_prompt_the_last_real_token_decides():
    model = dynamic_model(trigger_suffix=None)
    ids, mask = padded(requests(), "right")
    found = [d.position for d in decisions(model, ids, attention_mask=mask)]
    assert found == (mask.sum(dim=1) - 1).tolist()


def test_nothing_that_triggers_costs_no_second_prefill():
    model, ids = dynamic_model(), requests()
    calls = []
    model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    model.peft_config["default"].trigger_threshold = 1e9
    logits(model, ids)
    assert len(calls) == 1
    model.generate(input_ids=ids, **GREEDY)
    assert len(calls) == 1 + 6
    model.peft_config["default"].trigger_threshold = -1e9
    model.generate(input_ids=ids, **GREEDY)
    assert len(calls) == 1 + 6 + 7


def test_a_sigmoid_gate_and_other_strengths_give_what_per_row_strengths_give():
    model, ids = dynamic_model(trigger_gate="sigmoid", strength_off=0.25, strength_on=2.0), requests()
    strengths = [d.strength for d in decisions(model, ids)]
    assert all(0.25 < strength < 2.0 for strength in strengths)
    assert len(set(strengths)) == 6
    expected = logits(model, ids, neurontune_strength=strengths)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-5, atol=1e-5)


def test_on_a_ramp_strength_rises_with_the_score_from_off_at_the_threshold_to_on():
    model, ids = dynamic_model(strength_on=2.0), requests()
    scores = [d.score for d in decisions(model, ids)]
    low, high = sorted(scores)[1], sorted(scores)[4]
    config = model.peft_config["default"]
    config.trigger_gate, config.trigger_threshold, config.trigger_ramp = "ramp", low, high - low
    strengths = [d.strength for d in decisions(model, ids)]
    expected = [2.0 * min(1.0, max(0.0, (score - low) / (high - low))) for score in scores]
    assert strengths == pytest.approx(expected, abs=1e-5)
    assert strengths.count(0.0) == 2
    assert strengths.count(2.0) == 2
    per_row = logits(model, ids, neurontune_strength=strengths)
    torch.testing.assert_close(logits(model, ids), per_row, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        base = logits(model, ids)
    for row, strength in enumerate(strengths):  # what does not trigger is the base model's, bit for bit
        assert torch.equal(logits(model, ids)[row], base[row]) == (strength == 0)


def test_each_row_uses_the_trigger_of_its_own_adapter():
    model, ids = dynamic_model(), requests()
    model.add_adapter("other", dynamic_config(tiny_model()))
    model.add_adapter("static", dynamic_config(tiny_model(), modulation="static"))
    torch.manual_seed(0)
    for layer_name, parameter in model.named_parameters():
        if "neurontune_delta.other" in layer_name or "neurontune_delta.static" in layer_name:
            parameter.data.normal_()
            parameter.requires_grad_(False)
    set_random_triggers(model, seed=5, name="other")
    split_in_half(model, "other")
    names = ["default", "other", "__base__", "static", "other", "default"]
    with torch.no_grad(), model.trigger_log() as log:
        mixed = model(input_ids=ids, adapter_names=names).logits
    assert sorted(d.row for d in log) == [0, 1, 4, 5]
    for row, name in enumerate(names):
        alone = logits(model, ids[row : row + 1], adapter_names=[name])
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    model.base_model.set_adapter(["default", "static"])
    with torch.no_grad():
        both = model(input_ids=ids).logits
        for row in range(6):
            torch.testing.assert_close(
                both[row : row + 1], model(input_ids=ids[row : row + 1]).logits, rtol=1e-5, atol=1e-5
            )


def test_manual_strengths_go_before_the_trigger_and_dials_multiply_it():
    model, ids = dynamic_model(), requests()
    row_off, row_on = (triggered(model, ids).index(fired) for fired in (False, True))
    forced = logits(model, ids, neurontune_strength=[1.0] * 6)
    with model.strength_per_row([1.0] * 6):
        assert torch.equal(logits(model, ids), forced)
    assert not torch.allclose(forced[row_off], logits(model, ids)[row_off], atol=1e-3)
    with model.strength(0.5):
        half = logits(model, ids)
    model.peft_config["default"].strength_on = 0.5
    torch.testing.assert_close(half, logits(model, ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(half[row_on], forced[row_on], atol=1e-3)


def test_a_disabled_adapter_asks_no_trigger():
    model, ids = dynamic_model(), requests()
    with model.disable_adapter(), model.trigger_log() as log:
        assert torch.equal(logits(model, ids), logits(tiny_model(), ids))
    assert log == []


def test_training_acts_on_every_row():
    model, ids = dynamic_model(), requests()
    expected = logits(model, ids, neurontune_strength=[1.0] * 6)
    model.train()
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-5, atol=1e-5)


def test_copies_pickles_and_injected_models_decide_too():
    model, ids = dynamic_model(), requests()
    expected = logits(model, ids)
    assert torch.equal(logits(copy.deepcopy(model), ids), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), ids), expected)
    base = model.get_base_model()
    assert torch.equal(logits(base, ids), expected)
    injected = inject_adapter_in_model(dynamic_config(tiny_model()), tiny_model()).eval()
    injected.load_state_dict(base.state_dict())
    injected.peft_config["default"].trigger_threshold = model.peft_config["default"].trigger_threshold
    assert torch.equal(logits(injected.requires_grad_(False), ids), expected)


def test_unloading_leaves_the_plain_model():
    model, ids = dynamic_model(), requests()
    plain = model.unload()
    assert not plain._forward_hooks
    assert not plain._forward_pre_hooks
    assert not plain._forward_hooks_always_called
    assert torch.equal(logits(plain, ids), logits(tiny_model(), ids))


def test_merging_a_dynamic_adapter_needs_a_strength():
    model, ids = dynamic_model(), requests()
    with pytest.raises(ValueError, match=r"with dynamic modulation and no strength; expected one"):
        model.merge_adapter()
    with pytest.raises(ValueError, match=r"pass strength=1.0 to write the static adapter"):
        model.merge_and_unload()
    expected = logits(model, ids, neurontune_strength=[0.5] * 6)
    dynamic = logits(model, ids)
    model.merge_adapter(strength=0.5)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model, ids), dynamic)
    merged = model.merge_and_unload(strength=0.5)
    torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-4, atol=1e-4)


def test_two_threads_do_not_see_each_others_decisions():
    model, ids = dynamic_model(), requests()
    fires = triggered(model, ids)
    halves = {fired: ids[[row for row, f in enumerate(fires) if f is fired]] for fired in (False, True)}
    expected = {fired: model.generate(input_ids=rows, **GREEDY) for fired, rows in halves.items()}
    wrong, logs = [], {}

    def generate(fired: bool) -> None:
        with trigger_log() as log:
            for _ in range(4):
                if not torch.equal(model.generate(input_ids=halves[fired], **GREEDY), expected[fired]):
                    wrong.append(fired)
        logs[fired] = {decision.strength for decision in log}

    threads = [threading.Thread(target=generate, args=(fired,)) for fired in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert logs == {False: {0.0}, True: {1.0}}


def test_a_compiled_decoding_step_has_no_graph_break():
    torch._dynamo.reset()
    model, ids = dynamic_model(), requests()
    base = model.get_base_model()
    caches = [StaticCache(config=base.config, max_cache_len=16) for _ in range(2)]
    for cache in caches:
        logits(base, ids, past_key_values=cache)
    counter = CompileCounter()
    compiled = torch.compile(base, backend=counter, fullgraph=True)
    for step in range(3):
        one = torch.full((6, 1), 7 + step)
        with torch.no_grad():
            found = compiled(input_ids=one, past_key_values=caches[0]).logits
        torch.testing.assert_close(found, logits(base, one, past_key_values=caches[1]), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_a_compiled_prefill_decides_as_an_eager_one_does():
    torch._dynamo.reset()
    model, ids = dynamic_model(), requests()
    expected = logits(model, ids)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled, ids), expected, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(logits(compiled, ids), logits(tiny_model(), ids), rtol=1e-4, atol=1e-4)


def test_a_static_adapter_hangs_no_hooks_on_the_model():
    base = tuned_model().get_base_model()
    assert not base._forward_hooks
    assert not base._forward_pre_hooks


def test_an_unknown_prefix_stays_as_it_is_and_one_with_another_decision_is_refused():
    model, ids = dynamic_model(), requests()
    cache = DynamicCache()
    with model.disable_adapter():
        logits(model, ids[:, :3], past_key_values=cache)
    scores = sorted(d.score for d in decisions(model, ids[:, 3:], past_key_values=copy.deepcopy(cache)))
    model.peft_config["default"].trigger_threshold = (scores[2] + scores[3]) / 2
    with model.trigger_log() as log:
        found = logits(model, ids[:, 3:], past_key_values=cache)
    fires = [decision.strength > 0 for decision in log]
    assert 0 < sum(fires) < 6
    assert cache.get_seq_length() == 8
    off = logits(tiny_model(), ids)[:, 3:]
    assert [torch.allclose(found[row], off[row], atol=1e-5) for row in range(6)] == [not fired for fired in fires]
    model.peft_config["default"].trigger_threshold = -1e9
    cache = DynamicCache()
    logits(model, ids, past_key_values=cache)
    cache._neurontune_record.tokens.clear()
    with pytest.raises(ValueError, match="got a new turn behind a cache of 8 tokens that were not all seen"):
        logits(model, ids, past_key_values=cache)


def test_an_error_inside_a_call_leaves_no_plan_behind():
    model, ids = dynamic_model(), requests()
    expected = logits(model, ids)
    with pytest.raises(IndexError):
        logits(model, ids + 1000)
    assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(tuned_model(), ids), logits(tuned_model(), ids))


def test_packed_requests_are_refused():
    model = dynamic_model()
    with pytest.raises(ValueError, match=r"got packed requests .*; expected one request per row"):
        logits(model, requests(), cu_seq_lens_q=torch.tensor([0, 4, 8]))


# Decisions during generation


def late_model(every: int = 2):
    """No request of `requests()` triggers at its end; some answers do, later."""
    model = dynamic_model(recheck_every=every)
    for layer in neuron_layers(model):  # what is read at a token outweighs what is read over the turn
        layer.neurontune_trigger["default"][:, 1] /= 4
    with torch.no_grad(), model.trigger_log() as log:
        model(input_ids=torch.cat([requests(), tokens(6, 9) % 57 + 3], dim=1))
    at_end = [decision.score for decision in decisions(model, requests())]
    model.peft_config["default"].trigger_threshold = max(at_end) + 0.004
    assert max(decision.score for decision in log) > max(at_end) + 0.004
    return model


def test_an_answer_that_triggers_later_is_scaled_from_the_next_token_on():
    model = late_model()
    ids = torch.cat([requests(), tokens(6, 9) % 57 + 3], dim=1)
    log = decisions(model, ids)
    assert 0 < sum(decision.strength for decision in log) < 6
    found, off = logits(model, ids), logits(tiny_model(), ids)
    for decision in log:
        place = decision.position + 1 if decision.strength else ids.shape[1]
        assert decision.position is None or (decision.position - 7) % 2 == 0
        torch.testing.assert_close(found[decision.row, :place], off[decision.row, :place], rtol=1e-5, atol=1e-5)
        assert place == ids.shape[1] or not torch.allclose(found[decision.row, place], off[decision.row, place])
    for row in range(6):
        torch.testing.assert_close(found[row], logits(model, ids[row : row + 1])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("assisted", [False, True])
def test_rechecking_while_generating_equals_teacher_forcing(assisted):
    model = late_model()
    options = GREEDY | {"max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    changed = 0
    for row in range(6):
        ids = requests()[row : row + 1]
        with model.trigger_log() as log:
            out = model.generate(input_ids=ids, **options | ({"prompt_lookup_num_tokens": 3} if assisted else {}))
        changed += any(decision.strength for decision in log)
        forced = logits(model, out.sequences)[:, 7:-1]
        torch.testing.assert_close(forced, torch.stack(out.logits, dim=1), rtol=1e-4, atol=1e-4)
    assert changed


def test_a_token_that_triggered_and_was_taken_back_does_not_count():
    model = late_model(every=1)
    answers = [tokens(6, 5, seed=seed) % 57 + 3 for seed in (0, 1)]
    wrong = 0
    for row in range(6):
        prompt, first, second = (ids[row : row + 1] for ids in (requests(), *answers))
        cache = DynamicCache()
        logits(model, prompt, past_key_values=cache)
        with torch.no_grad(), model.trigger_log() as log:
            model(input_ids=first, past_key_values=cache)
        wrong += any(decision.strength for decision in log)
        cache.crop(-5)
        found = logits(model, second, past_key_values=cache)
        expected = logits(model, torch.cat([prompt, second], dim=1))[:, 8:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert wrong


def test_on_a_ramp_an_answer_that_triggers_later_gets_the_strength_of_its_score_then():
    model = late_model()
    config = model.peft_config["default"]
    config.trigger_gate, config.trigger_ramp, config.strength_on = "ramp", 0.5, 2.0
    ids = torch.cat([requests(), tokens(6, 9) % 57 + 3], dim=1)
    late = [d for d in decisions(model, ids) if d.strength]
    assert late
    for decision in late:
        assert decision.strength == pytest.approx(2 * (decision.score - config.trigger_threshold) / 0.5, rel=1e-3)
    found = logits(model, ids)
    for row in range(6):
        torch.testing.assert_close(found[row], logits(model, ids[row : row + 1])[0], rtol=1e-5, atol=1e-5)


def test_rechecking_needs_its_adapter_alone():
    model = dynamic_model(recheck_every=2)
    model.add_adapter("other", dynamic_config(tiny_model(), modulation="static"))
    model.base_model.set_adapter(["default", "other"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="one of which has recheck_every; expected it alone"):
        logits(model, requests())


# Other kinds of models and callers


def experts_model(model_type: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **COMMON | EXPERTS[model_type])
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "llama4_text"])
def test_fused_experts_are_read_and_scaled_per_row(model_type):
    base = experts_model(model_type)
    neurons = Neurons.from_ranked(
        {"safety": [(site.name, index) for site in find_sites(base).values() for index in range(0, site.width, 5)]},
        widths={site.name: site.width for site in find_sites(base).values()},
    )
    model = get_peft_model(base, dynamic_config(base, neurons=neurons))
    randomize(model, std=3.0)
    model.requires_grad_(False)
    set_random_triggers(model)
    model.eval()
    split_in_half(model)
    ids, mask = padded(requests(), "left")
    assert 0 < sum(triggered(model, requests())) < 6
    together = logits(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for row in range(6):
        real = mask[row].bool()
        alone = logits(model, ids[row : row + 1, real])
        torch.testing.assert_close(together[row, real], alone[0], rtol=1e-4, atol=1e-5)


def test_a_trigger_of_experts_reads_what_they_add_to_the_output():
    """Scaling a neuron by `1 + d` adds `d` times its routed activation times its column."""
    base = experts_model("mixtral")
    site = next(iter(find_sites(base).values()))
    neurons = Neurons.from_ranked({"safety": [(site.name, 3)]}, widths={site.name: site.width})
    model = get_peft_model(base, dynamic_config(base, neurons=neurons)).requires_grad_(False).eval()
    layer = neuron_layers(model)[0]
    layer.neurontune_trigger["default"][:, 0] = 1.0
    layer.neurontune_delta["default"].data.fill_(1.0)
    outputs = []
    layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    scores = [decision.score for decision in decisions(model, requests())]
    outputs.clear()
    for strength in (0.0, 1.0):
        logits(model, requests(), neurontune_strength=[strength] * 6)
    change = (outputs[1] - outputs[0]).view(6, 8, -1)[:, -1]
    column = layer.get_base_layer().down_proj[0, :, 3]
    torch.testing.assert_close(change, torch.tensor(scores).unsqueeze(1) * column, rtol=1e-3, atol=1e-6)


def test_a_pipeline_decides_without_being_told():
    tokenizer, base = tiny_tokenizer(), tiny_llama()
    model = get_peft_model(base, dynamic_config(base, trigger_suffix=[4]))
    randomize(model, std=3.0)
    model.requires_grad_(False)
    set_random_triggers(model)
    pipe = pipeline("text-generation", model=model.eval(), tokenizer=tokenizer)
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "What is 1+1?", "zz")]
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "batch_size": 3}
    with trigger_log() as log:
        pipe(chats, **options)
    assert len({decision.score for decision in log}) == 3
    answers = {}
    for threshold in (-1e9, 1e9):
        model.peft_config["default"].trigger_threshold = threshold
        answers[threshold] = str(pipe(chats, **options))
    assert answers[-1e9] != answers[1e9]
