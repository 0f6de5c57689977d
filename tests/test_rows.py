"""Each row of a batch has its own adapter and strength, and equals the same row run alone."""

import threading

import pytest
import torch
from adapters import randomize, some_neurons, tuned_model
from architectures import tiny_model, tokens
from peft import PeftModel, get_peft_model
from torch import nn

from neurontune_peft import Neurons, NeuronTuneConfig

TYPES = ("llama", "gpt2", "opt", "phi")


def logits(model: nn.Module, ids: torch.Tensor, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def many_adapters(model_type: str, names: list[str], *, side: str = "input") -> PeftModel:
    """A model with several adapters over overlapping neurons; the last one acts at the first site only."""
    base = tiny_model(model_type)
    neurons = some_neurons(base)
    config = {"task_type": "CAUSAL_LM", "neurons": neurons, "neuron_side": side}
    if side == "output":
        config["neurons"] = Neurons.from_ranked({"safety": neurons.ranked("safety")[:2]}, widths=out_widths(base))
    model = get_peft_model(base, NeuronTuneConfig(**config), adapter_name=names[0])
    for name in names[1:-1]:
        model.add_adapter(name, NeuronTuneConfig(**config))
    site = neurons.sites[0]
    one = Neurons.from_ranked({"safety": [(site, 5)]}, widths={site: model.get_neurons(names[0]).widths[site]})
    model.add_adapter(names[-1], NeuronTuneConfig(**(config | {"neurons": one})))
    randomize(model)
    return model.eval()


def out_widths(model: nn.Module) -> dict[str, int]:
    return dict.fromkeys(some_neurons(model).sites, 32)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("model_type", TYPES)
def test_each_row_of_a_mixed_batch_equals_the_row_alone_with_its_adapter(model_type, side):
    model = many_adapters(model_type, ["a", "b", "c"], side=side)
    ids = tokens(batch=6)
    names = ["b", "__base__", "a", "c", "a", "b"]
    mixed = logits(model, ids, adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = logits(model, ids[row : row + 1])
            assert torch.equal(mixed[row : row + 1], alone) or torch.allclose(mixed[row : row + 1], alone, atol=1e-6)
        else:
            model.set_adapter(name)
            alone = logits(model, ids[row : row + 1])
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[2], logits(model, ids, adapter_names=["b"] * 6)[2], atol=1e-4)


def test_a_batch_may_hold_64_adapters():
    names = [f"adapter{number}" for number in range(64)]
    model = many_adapters("llama", names)
    ids = tokens(batch=64)
    mixed = logits(model, ids, adapter_names=names)
    for row in (0, 17, 63):
        model.set_adapter(names[row])
        torch.testing.assert_close(mixed[row : row + 1], logits(model, ids[row : row + 1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_each_row_has_its_own_strength_and_0_is_the_base_model(model_type):
    model = tuned_model(tiny_model(model_type))
    ids = tokens(batch=4)
    strengths = [0.0, 1.0, 1.5, 0.0]
    mixed = logits(model, ids, neurontune_strength=strengths)
    for row, strength in enumerate(strengths):
        with model.strength(strength):
            alone = logits(model, ids[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    with model.strength_per_row(strengths):
        assert torch.equal(logits(model, ids), mixed)
    base = logits(tiny_model(model_type), ids)
    assert torch.equal(logits(model, ids, neurontune_strength=torch.zeros(4)), base)


def test_strengths_and_adapter_names_combine():
    model = many_adapters("llama", ["a", "b", "c"])
    ids = tokens(batch=3)
    mixed = logits(model, ids, adapter_names=["a", "b", "__base__"], neurontune_strength=[0.5, 2.0, 3.0])
    for row, (name, strength) in enumerate([("a", 0.5), ("b", 2.0)]):
        model.set_adapter(name)
        with model.strength(strength):
            torch.testing.assert_close(mixed[row : row + 1], logits(model, ids[row : row + 1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[2:], logits(tiny_model(), ids[2:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_generation_gives_each_row_the_answer_it_gets_alone(model_type, options):
    model = many_adapters(model_type, ["a", "b", "c"])
    ids = tokens(batch=3)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | options
    names = ["b", "a", "__base__"]
    together = model.generate(input_ids=ids, adapter_names=names, neurontune_strength=[1.0, 2.0, 1.0], **options)
    per_row = options.get("num_return_sequences", 1)
    for row, (name, strength) in enumerate(zip(names, [1.0, 2.0, 1.0], strict=True)):
        alone = model.generate(
            input_ids=ids[row : row + 1], adapter_names=[name], neurontune_strength=[strength], **options
        )
        assert torch.equal(together[row * per_row : (row + 1) * per_row], alone)


def test_two_threads_with_different_strengths_do_not_see_each_other():
    model = tuned_model()
    randomize(model, std=20.0)  # strong enough to change the answers of a random model
    ids = tokens(batch=2)
    expected = {s: model.generate(input_ids=ids, neurontune_strength=[s, s], max_new_tokens=20) for s in (0.0, 3.0)}
    assert not torch.equal(*expected.values())
    wrong: list[float] = []

    def generate(strength: float) -> None:
        for _ in range(5):
            found = model.generate(input_ids=ids, neurontune_strength=[strength] * 2, max_new_tokens=20)
            if not torch.equal(found, expected[strength]):
                wrong.append(strength)

    threads = [threading.Thread(target=generate, args=(strength,)) for strength in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_saved_module_follows_the_adapter_of_its_row():
    model = get_peft_model(tiny_model(), NeuronTuneConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]))
    model.add_adapter("other", NeuronTuneConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]))
    for copy in model.base_model.model.lm_head.modules_to_save.values():
        copy.weight.data.normal_()
    model.eval()
    ids = tokens(batch=2)
    mixed = logits(model, ids, adapter_names=["other", "default"])
    for row, name in enumerate(["other", "default"]):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row : row + 1], logits(model, ids[row : row + 1]), rtol=1e-5, atol=1e-5)


def test_a_call_without_rows_is_unchanged_after_one_with_rows():
    model = tuned_model()
    before = logits(model, tokens())
    logits(model, tokens(), neurontune_strength=[0.0, 2.0])
    assert torch.equal(logits(model, tokens()), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_names": ["default", "x"]}, r"got adapter_names with \['x'\]; expected names among"),
        ({"adapter_names": ["default"]}, "for 1 requests and a batch of 2"),
        ({"neurontune_strength": [1.0, 2.0, 3.0]}, "for 3 requests and a batch of 2"),
        ({"neurontune_strength": [1.0, float("nan")]}, "got neurontune_strength="),
        ({"neurontune_strength": [1.0], "adapter_names": ["default"] * 2}, "got 2 adapter_names and 1 strengths"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_an_impossible_row_is_refused(options, message, call):
    model = tuned_model()
    run = model if call == "forward" else model.generate
    with pytest.raises(ValueError, match=message):
        run(input_ids=tokens(), **options)


@pytest.mark.parametrize("state", ["training mode", "merged adapter"])
def test_rows_are_refused_where_they_would_be_wrong(state):
    model = tuned_model()
    if state == "training mode":
        model.train()
    else:
        model.merge_adapter()
    with pytest.raises(ValueError, match=state):
        model(input_ids=tokens(), neurontune_strength=[0.0, 1.0])
