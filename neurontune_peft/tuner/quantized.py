"""Quantised linear modules with scaled neurons: merged where PEFT can write weights back, otherwise dequantised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, QuantizationBackend
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neurontune_peft.tuner.linear import Linear
from neurontune_peft.tuner.packing import unpack_4bit

# Where the libraries keep a module's quantised weight and what belongs to it.
_WEIGHT_ATTRIBUTES = ("weight", "bias", "state", "quant_state", "W_q", "meta")
_PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# `ours`: scaling by more than 5 % moves some value of any quantised weight; if none moved, nothing was written.
_SURE_TO_SHOW = 0.05


def quantization_backend(module: nn.Module, **recipe: Any) -> QuantizationBackend | None:
    """
    PEFT's access to the weight of a quantised linear module.

    Args:
        module (`nn.Module`): Any module.
        recipe: What the model knows about its quantisation (PEFT's `get_quantization_kwargs`).

    Returns:
        `QuantizationBackend` or `None`: One that refuses to merge when PEFT does not know how to write such weights;
        `None` when the module is not a quantised linear module.
    """
    try:
        backend = resolve_quantization_backend(module, **recipe)
    except ValueError:  # torchao's weights, without the recipe that would quantise them again
        backend = None
    if backend is None and isinstance(module, nn.Linear) and not _is_plain(module.weight):
        return ForwardOnlyQuantizationBackend(type(module.weight.data).__name__)
    return backend


def _is_plain(weight: Tensor) -> bool:
    wraps_others = hasattr(weight, "__tensor_flatten__") and not isinstance(weight, DTensor)
    return weight.dtype in _PLAIN_DTYPES and not wraps_others


@dataclass(frozen=True)
class Rounding:
    """
    What quantising a weight again changed in it, relative to the norm of what was to be stored.

    Args:
        scaled (`float`): In the slices of the scaled neurons.
        others (`float`): In all other slices, which share their blocks' or rows' step sizes with the scaled ones.
    """

    scaled: float
    others: float


class QuantizedLinear(Linear):
    """
    A quantised linear module with scaled neurons.

    Its forward and backward passes are those of any other module. Merging quantises the scaled weight again and keeps
    the quantised original, so that unmerging puts back the very same bits.

    Args:
        base_layer (`nn.Module`): The quantised module.
        backend (`QuantizationBackend`): Access to its weight.
        neuron_side (`str`, *optional*, defaults to `"input"`): As in [`NeuronTuneConfig`].
    """

    def __init__(self, base_layer: nn.Module, *, backend: QuantizationBackend, neuron_side: str = "input") -> None:
        super().__init__(base_layer, neuron_side=neuron_side)
        self.quantization_backend: QuantizationBackend | None = backend
        self.rounding: Rounding | None = None
        self._original: dict[str, tuple[Any, dict[str, Any] | None]] | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether the module still is quantised; [`dequantize`] ends it."""
        return self.quantization_backend is not None

    def check_mergeable(self) -> None:
        """
        Refuse to merge into weights that cannot be written back.

        Raises:
            ValueError: Offers `dequantize=True`.
        """
        backend = self.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise ValueError(
                f"got weights quantised as '{backend.backend_name}', which PEFT cannot write back; expected those of "
                "bitsandbytes, HQQ, or torchao loaded with a TorchAoConfig; leave the adapter unmerged, or call "
                "merge_and_unload(dequantize=True) to merge into dequantised copies of the layers"
            )

    def get_base_weight(self) -> Tensor:
        """
        The weight in floating point, dequantised.

        Raises:
            ValueError: When the library cannot dequantise it.
        """
        base: Any = self.get_base_layer()
        if (backend := self.quantization_backend) is None:
            return super().get_base_weight()
        unpack_4bit(base)
        try:
            if backend.supports_merge:
                return backend.get_base_weight(base)
            if type(base.weight.data) is Tensor:  # torch would cast it; the step sizes are the module's own secret
                raise TypeError(f"{type(base).__name__} holds bare {base.weight.dtype}")
            return base.weight.dequantize()
        except (AttributeError, NotImplementedError, TypeError) as error:
            raise ValueError(
                f"got weights quantised as '{backend.backend_name}', which cannot be dequantised; expected weights of "
                "bitsandbytes, HQQ, torchao or quanto; leave the adapter unmerged"
            ) from error

    def write_slices(self, slices: Mapping[str, Tensor], index: Tensor) -> None:
        if not self.is_quantized:
            super().write_slices(slices, index)
            return
        self.check_mergeable()
        weight = self.get_base_weight()
        place = index.to(weight.device)
        part = slices["weight"].to(weight).movedim(0, self.neuron_dim)
        wanted = weight.index_copy(self.neuron_dim, place, part)
        original = _held(self.get_base_layer())
        try:
            if not torch.equal(wanted, weight):
                self._requantize(wanted, weight, place)
            if (bias := self._scaled_bias()) is not None:
                self._set_bias(bias.index_copy(0, place, slices["bias"].to(bias)))
        except BaseException:
            _put_back(self.get_base_layer(), original)
            raise
        self._original = original

    def restore_weights(self) -> None:
        if self._original is None:
            super().restore_weights()
            return
        original, self._original, self._before_merge, self.rounding = self._original, None, None, None
        base: Any = self.get_base_layer()
        device = next(base.parameters()).device
        _put_back(base, original)
        base.to(device)

    def dequantize(self, dtype: torch.dtype) -> tuple[nn.Module, QuantizationBackend | None]:
        """
        Put a plain `nn.Linear` in the place of the quantised module.

        Args:
            dtype (`torch.dtype`): Of the new weight: that of the module's inputs.

        Returns:
            `tuple`: What was replaced, the module and its backend, to be set again should the merge fail.

        Raises:
            ValueError: When the library cannot dequantise the weight.
        """
        self.unmerge()
        replaced = self.base_layer, self.quantization_backend
        weight = self.get_base_weight().to(dtype)
        bias: Tensor | None = getattr(self.base_layer, "bias", None)
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=bias is not None)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
        self.base_layer, self.quantization_backend = plain.train(self.training), None
        return replaced

    def _requantize(self, wanted: Tensor, before: Tensor, place: Tensor) -> None:
        """Store a weight as the library stores it, and measure what it made of it."""
        base: Any = self.get_base_layer()
        self.set_base_weight(wanted)
        if self.base_layer is not base:  # HQQ's new module has no bias, and hooks stay behind at the old one
            for name in ("W_q", "meta"):
                setattr(base, name, getattr(self.base_layer, name))
            self.base_layer = base
        found = self.get_base_weight()
        scaled = torch.zeros(self.width, dtype=torch.bool, device=place.device).index_fill(0, place, True)
        self.rounding = Rounding(self._distance(found, wanted, scaled), self._distance(found, wanted, ~scaled))
        if torch.equal(found, before) and self._distance(before, wanted, scaled) > _SURE_TO_SHOW:
            raise ValueError(
                f"got the old weights back after writing to weights of class {type(base).__name__}; expected the "
                "scaled ones, up to rounding; leave the adapter unmerged, or call merge_and_unload(dequantize=True)"
            )

    def _distance(self, found: Tensor, wanted: Tensor, neurons: Tensor) -> float:
        """Norm of the difference of two weights, relative to the second, over some neurons' slices."""
        other = 1 - self.neuron_dim
        difference = (found.float() - wanted.float()).square().sum(other)[neurons].sum()
        return math.sqrt(float(difference / wanted.float().square().sum(other)[neurons].sum().clamp_min(1e-38)))

    def _set_bias(self, bias: Tensor) -> None:
        base: Any = self.get_base_layer()
        base.bias = nn.Parameter(bias, requires_grad=False) if isinstance(base.bias, nn.Parameter) else bias


def _held(base: nn.Module) -> dict[str, tuple[Any, dict[str, Any] | None]]:
    """References to all that makes a quantised weight, with their own attributes, which backends overwrite."""
    found = {name: getattr(base, name) for name in _WEIGHT_ATTRIBUTES if hasattr(base, name)}
    return {name: (value, dict(vars(value)) if hasattr(value, "__dict__") else None) for name, value in found.items()}


def _put_back(base: nn.Module, held: Mapping[str, tuple[Any, dict[str, Any] | None]]) -> None:
    for name, (value, attributes) in held.items():
        if attributes is not None:
            vars(value).clear()
            vars(value).update(attributes)
        setattr(base, name, value)


def rounding_warning(layers: Iterable[QuantizedLinear]) -> str | None:
    """The largest rounding among merged layers, in words; `None` when nothing was quantised again."""
    rounded = [(layer.rounding, layer.quantization_backend) for layer in layers]
    found = [(rounding, backend) for rounding, backend in rounded if rounding is not None and backend is not None]
    if not found:
        return None
    scaled, others = (max(getattr(rounding, part) for rounding, _ in found) for part in ("scaled", "others"))
    names = ", ".join(sorted({backend.backend_name for _, backend in found}))
    return (
        f"merged into {len(found)} layers quantised by {names}: quantising again changed the weights of the scaled "
        f"neurons by {scaled:.2%} of their norm and those of the others by {others:.2%} (the largest of any layer); "
        "unmerging restores the weights bit for bit; merge_and_unload(dequantize=True) merges without this rounding"
    )


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Dtype in which a quantised model's layers exchange activations: that of its first plain weight."""
    plain = (p for name, p in model.named_parameters() if "neurontune_" not in name and _is_plain(p))
    return next((p.dtype for p in plain), torch.get_default_dtype())


def leave_unquantized(model: nn.Module, names: Iterable[str]) -> None:
    """
    Have transformers save and load some modules of a quantised model as plain ones.

    Args:
        model (`nn.Module`): The model; one without a `quantization_config` is left alone.
        names (`Iterable[str]`): Paths of the modules.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(quantizer.quantization_config, field):
            # Once a list is given, transformers does not add its own, such as the head, any more.
            known = getattr(quantizer.quantization_config, field) or quantizer.modules_to_not_convert or ()
            setattr(quantizer.quantization_config, field, sorted({*known, *names}))
