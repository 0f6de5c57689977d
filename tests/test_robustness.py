"""Whatever a file holds, loading it works or is refused with one of our errors, and the model is unchanged."""

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import randomize, saved_adapter, some_neurons, tuned_model
from architectures import tiny_model, tokens
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.tuner.names import SAVED

Files = tuple[bytes, bytes]  # adapter_model.safetensors, adapter_config.json


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Files, dict[str, torch.Tensor]]:
    path, model = saved_adapter(tmp_path_factory.mktemp("adapter"))
    files = tuple((path / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json"))
    return files, {name: tensor for name, tensor in model.state_dict().items() if "neurontune" in name}


def header(weights: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def with_header(content: object, data: bytes) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


# Each mutation returns both files, changed in one way.


def flip_bytes(files: Files, rng: random.Random) -> Files:
    changed = [bytearray(content) for content in files]
    target = changed[rng.random() < 0.2]
    for _ in range(rng.randint(1, 4)):
        target[rng.randrange(len(target))] ^= 1 << rng.randrange(8)
    return bytes(changed[0]), bytes(changed[1])


def truncate(files: Files, rng: random.Random) -> Files:
    return files[0][: rng.randrange(len(files[0]))], files[1]


def append(files: Files, rng: random.Random) -> Files:
    return files[0] + rng.randbytes(rng.randint(1, 40)), files[1]


def change_tensor(files: Files, rng: random.Random) -> Files:
    tensors = load_tensors(files[0])
    key = rng.choice(sorted(tensors))
    other = tensors[rng.choice(sorted(tensors))]
    tensor = tensors[key]
    tensors[key] = rng.choice(
        [
            lambda: tensor.double(),
            lambda: tensor.to(torch.int64),
            lambda: tensor.bool(),
            lambda: tensor[:-1],
            lambda: tensor.repeat(2),
            lambda: tensor.reshape(1, -1),
            lambda: tensor.new_empty(0),
            lambda: tensor * 10**6,
            lambda: -tensor - 1,
            lambda: torch.full_like(tensor.float(), rng.choice([float("nan"), float("inf")])),
            lambda: other.clone(),
        ]
    )()
    return save(tensors), files[1]


def rename_tensor(files: Files, rng: random.Random) -> Files:
    tensors = load_tensors(files[0])
    key = rng.choice(sorted(tensors))
    name = rng.choice(
        ["../../etc/passwd", key + ".x", key[1:], "", "neurontune_delta", key.replace("layers.0", "layers.9")]
    )
    tensors[name] = tensors.pop(key)
    return save(tensors), files[1]


def drop_tensor(files: Files, rng: random.Random) -> Files:
    tensors = load_tensors(files[0])
    del tensors[rng.choice(sorted(tensors))]
    return save(tensors), files[1]


def change_header(files: Files, rng: random.Random) -> Files:
    content, data = header(files[0])
    key = rng.choice([key for key in content if key != "__metadata__"])
    entry = content[key]
    entry[rng.choice(["shape", "data_offsets", "dtype"])] = rng.choice(
        [[2**62], [-1], [0, 2**40], "F64", "I8", "X9", [1, 2, 3], None, {}]
    )
    return with_header(content, data), files[1]


def duplicate_key(files: Files, rng: random.Random) -> Files:
    content, data = header(files[0])
    key, other = rng.sample([key for key in content if key != "__metadata__"], 2)
    text = json.dumps(content)[:-1] + f", {json.dumps(key)}: {json.dumps(content[other])}}}"
    return with_header(text.encode(), data), files[1]


def huge_header(files: Files, rng: random.Random) -> Files:
    return rng.choice([2**63, 2**40, 10**8]).to_bytes(8, "little") + files[0][8:], files[1]


def change_config(files: Files, rng: random.Random) -> Files:
    config = json.loads(files[1])
    key = rng.choice(["neuron_counts", "site_widths", "neuron_side", "format_version", "target_modules", "peft_type"])
    config[key] = rng.choice(
        [None, [], {}, "", -1, 0, 10**9, "../../x", {"safety": {"x": 1}}, {"safety": {"x": -5}}, [["a"]], True, 1.5]
    )
    return files[0], json.dumps(config).encode()


def change_count(files: Files, rng: random.Random) -> Files:
    config = json.loads(files[1])
    sites = config["neuron_counts"][rng.choice(["safety", "utility"])]
    sites[rng.choice(sorted(sites))] = rng.choice([0, -1, 1, 7, 10**7, "3", None, 2.0])
    return files[0], json.dumps(config).encode()


def hostile_config(files: Files, rng: random.Random) -> Files:
    return files[0], rng.choice([b"", b"{", b"[]", b"null", b"[" * 5000, b"\xff\xfe", b'{"peft_type": "NEURONTUNE"}'])


MUTATIONS: tuple[Callable[[Files, random.Random], Files], ...] = (
    flip_bytes,
    truncate,
    append,
    change_tensor,
    rename_tensor,
    drop_tensor,
    change_header,
    duplicate_key,
    huge_header,
    change_config,
    change_count,
    hostile_config,
)
PER_MUTATION = 175  # 2,100 files in all


def load_tensors(weights: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(weights)


def is_possible(model: PeftModel) -> bool:
    """Whether what was loaded satisfies all that a valid file does: then nothing was misread."""
    neurons = model.get_neurons()  # checks ranges, repetitions and ranks
    deltas = [p for n, p in model.named_parameters() if "neurontune_delta" in n]
    return neurons.total > 0 and all(torch.isfinite(delta).all() for delta in deltas)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_mutated_adapter_loads_as_it_stands_or_is_refused_and_the_model_is_unchanged(mutate, original, tmp_path):
    files, _ = original
    rng = random.Random(mutate.__name__)
    model = tiny_model()
    before, modules = logits(model), [type(module) for module in model.modules()]
    refused = 0
    for _ in range(PER_MUTATION):
        weights, config = mutate(files, rng)
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        (tmp_path / "adapter_config.json").write_bytes(config)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # another fingerprint, a changed name: warnings are not misloads
                loaded = PeftModel.from_pretrained(model, tmp_path)
        except (ValueError, TypeError, RecursionError):  # the last by Python, which parses JSON for PEFT first
            refused += 1
        except KeyError:  # PEFT's own answer to a type that is not ours
            assert b'"peft_type": "NEURONTUNE"' not in config
            refused += 1
        else:
            assert is_possible(loaded)
            in_file = load_file(tmp_path / "adapter_model.safetensors")
            for key, tensor in loaded.state_dict().items():
                plain = key.removesuffix(".default")
                if key.endswith(tuple(f"{name}.default" for name in SAVED)):
                    assert torch.equal(tensor.double(), in_file[plain].double())
            model = loaded.unload()
        assert [type(module) for module in model.modules()] == modules
        assert torch.equal(logits(model), before)
    assert refused > 0


def test_merging_toggling_adding_and_deleting_in_random_order_leaves_the_weights_bit_exact():
    model = tuned_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if "neurontune" not in name}
    rng = random.Random(0)
    made = 0
    for _ in range(100):
        action = rng.choice(["merge", "unmerge", "disable", "add", "delete", "strength", "counts", "activate"])
        merged = any(getattr(module, "merged_adapters", None) for module in model.modules())
        names = list(model.peft_config)
        if action == "merge" and not merged:
            model.merge_adapter()
        elif action == "unmerge" and merged:
            model.unmerge_adapter()
        elif action == "disable":
            with model.disable_adapter():
                logits(model)
        elif action == "add" and not merged:
            made += 1
            model.add_adapter(f"more{made}", NeuronTuneConfig(neurons=some_neurons(tiny_model())))
            randomize(model, seed=made)
        elif action == "delete" and not merged and len(names) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT says which adapter it activates instead
                model.delete_adapter(rng.choice(names))
        elif action == "strength":
            model.set_strength(rng.choice([0.0, 0.5, 1.0, 2.0]))
        elif action == "counts":
            model.set_neuron_counts(safety=rng.randint(0, 6))
        elif action == "activate" and not merged:
            model.base_model.set_adapter(rng.sample(names, rng.randint(1, len(names))))
        logits(model)
    if any(getattr(module, "merged_adapters", None) for module in model.modules()):
        model.unmerge_adapter()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())


def test_an_exception_in_the_middle_of_a_merge_leaves_what_unmerging_restores(monkeypatch):
    model = tuned_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = list(model.base_model.neuron_layers("default").values())
    monkeypatch.setattr(layers[1], "read_slices", lambda index: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        model.merge_adapter()
    monkeypatch.undo()
    model.unmerge_adapter()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_saving_that_is_killed_leaves_the_old_adapter_or_the_new_one(tmp_path):
    path, _ = saved_adapter(tmp_path)
    code = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from adapters import randomize, tuned_model
model = tuned_model()
randomize(model, seed=5)
threading.Thread(target=lambda: (time.sleep(float(sys.argv[1])), os.kill(os.getpid(), signal.SIGKILL))).start()
while True:
    model.save_pretrained({str(path)!r})
"""
    for wait in ("0.01", "0.05", "0.1"):
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", code, wait], env=environment, check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        tensors = load_file(path / "adapter_model.safetensors")  # whole, whichever it is
        assert len(tensors) == 6
        json.loads((path / "adapter_config.json").read_text())
        assert PeftModel.from_pretrained(tiny_model(), path).get_neurons().total == 10


def test_the_errors_of_safetensors_are_the_ones_we_translate():
    assert issubclass(SafetensorError, Exception), "safetensors renamed its error; adapt check_adapter_file"
