"""What scaling on the fly must not do: synchronise, allocate, round twice, act before it is loaded."""

import pytest
import torch
from adapters import tuned_model
from architectures import tiny_model
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neurontune_peft import Neurons, NeuronTuneConfig
from neurontune_peft.tuner.layer import NeuronTuneLayer

# Operations that read a value back from the device, for which a GPU has to finish all its work first.
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "unique", "equal", "is_nonzero", "masked_select")


class Recorder(TorchDispatchMode):
    """Notes the names of all operations and the bytes of every storage that one of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.allocated = 0
        self._seen: set[int] = set()
        self._kept: list[torch.Tensor] = []  # a freed storage could be given out again at the same address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.name().split("::")[1].split(".")[0])
        given = [t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self._seen.update(given)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._seen:
                self._seen.add(tensor.untyped_storage().data_ptr())
                self._kept.append(tensor)
                self.allocated += tensor.untyped_storage().nbytes()
        return result


def first_layer(model: torch.nn.Module) -> NeuronTuneLayer:
    return next(module for module in model.modules() if isinstance(module, NeuronTuneLayer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_row", [False, True])
def test_a_decode_step_reads_nothing_back_from_the_device(dtype, per_row):
    model = tuned_model(tiny_model().to(dtype))
    options = {"neurontune_strength": [0.0, 1.0, 0.5]} if per_row else {}
    ids = torch.tensor([[3], [4], [5]])
    with torch.no_grad(), model.disable_adapter(), Recorder() as bare:
        model(input_ids=ids, use_cache=False)
    with torch.no_grad(), Recorder() as tuned:
        # Strengths that come as a list are checked to be finite, once per call and before any layer runs.
        model(input_ids=ids, use_cache=False, **options)
    counts = {name: tuned.names.count(name) - bare.names.count(name) for name in SYNCHRONISING}
    assert counts == {name: int(per_row and name == "_local_scalar_dense") for name in SYNCHRONISING}


@pytest.mark.parametrize("rows", [1, 16])
def test_a_decode_step_allocates_its_output_and_one_vector_of_scales(rows):
    layer = first_layer(tuned_model())
    selected = layer.neurontune_delta["default"].numel()
    hidden = torch.randn(rows, 1, layer.width)
    with torch.no_grad(), Recorder() as recorder:
        scaled = layer.scaled(hidden)
    assert recorder.allocated <= 4 * (scaled.numel() + layer.width + 2 * selected)


def test_a_generation_works_out_the_scales_of_its_rows_once():
    model = tuned_model()
    ids = torch.tensor([[3, 4], [4, 5]])
    counts = {}
    for tokens in (2, 6):
        with torch.no_grad(), Recorder() as recorder:
            model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, neurontune_strength=[0.5, 2.0])
        counts[tokens] = recorder.names.count("index_copy_")
    layers = sum(isinstance(module, NeuronTuneLayer) for module in model.modules())
    assert counts == {2: layers, 6: layers}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_with_and_without_gradients_the_same_scales_apply_bit_for_bit(dtype, grad):
    layer = first_layer(tuned_model())
    hidden = torch.randn(3, 5, layer.width).to(dtype)
    scale = layer.combined_scale(["default"])
    with torch.set_grad_enabled(grad):
        scaled = layer.scaled(hidden)
    assert torch.equal(scaled, (hidden.float() * scale).to(dtype))


def test_deltas_in_half_precision_are_multiplied_in_float32():
    layer = first_layer(tuned_model())
    layer.neurontune_delta["default"].data = torch.full_like(layer.neurontune_delta["default"], 0.001).bfloat16()
    layer.neurontune_strength["default"] = layer.neurontune_strength["default"].bfloat16()
    change = layer.scale("default") - 1
    assert change.dtype == torch.float32
    torch.testing.assert_close(change, torch.full_like(change, 0.001), rtol=0.01, atol=0)


def test_writing_into_a_delta_in_any_way_acts_on_the_next_call():
    layer = first_layer(tuned_model())
    hidden = torch.ones(1, 1, layer.width)
    index = layer.neurontune_index["default"].long()
    with torch.no_grad():
        layer.scaled(hidden)
        layer.neurontune_delta["default"].data.fill_(0.5)  # what no version counter notices
        assert torch.equal(layer.scaled(hidden)[0, 0, index], torch.full((len(index),), 1.5))


def test_an_adapter_whose_tensors_never_arrived_is_the_identity():
    base = tiny_model()
    site = next(name for name, _ in base.named_modules() if name.endswith("down_proj"))
    counts = {"neuron_counts": {"safety": {site: 2}}, "target_modules": [site], "site_widths": {site: 48}}
    config = NeuronTuneConfig(task_type="CAUSAL_LM", **counts)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        model = get_peft_model(base, config).eval()
        assert torch.equal(model(input_ids=ids).logits, expected)
        assert torch.equal(model(input_ids=ids, neurontune_strength=[2.0]).logits, expected)


def test_a_neuron_matrix_of_another_dtype_keeps_its_dtype():
    base = tiny_model()
    width = 48
    neurons = Neurons.from_ranked(
        {"safety": [("model.layers.0.mlp.down_proj", 1)]}, widths={"model.layers.0.mlp.down_proj": width}
    )
    layer = first_layer(get_peft_model(base, NeuronTuneConfig(neurons=neurons)).eval())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        with torch.no_grad():
            assert layer.scaled(torch.ones(2, 1, width, dtype=dtype)).dtype == dtype
