"""Which model is this, to the last bit, with its adapters and their dials? What a cache of its answers goes by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from neurontune_peft.tuner.rows import CURRENT

PACKAGES = ("neurontune-peft", "peft", "torch", "transformers")
# Whose hooks belong to how a model is built or attached, and follow from its configuration.
KNOWN_HOOKS = ("accelerate.", "neurontune_peft.tuner.", "peft.", "torch.", "transformers.")
SIMPLE = (str, int, float, bool, type(None))


def identity(model: nn.Module) -> dict[str, Any] | None:
    """
    Everything that a model's answers follow from: all its weights, its configuration, its adapters with their
    settings (strengths, counts, triggers and thresholds, which are on, what is merged), the versions and the device.

    `tuner.fingerprint` samples weights to tell checkpoints apart. A cache of answers must see a single changed
    neuron, so here every value counts.

    Args:
        model (`nn.Module`): A model of transformers, or a `PeftModel` of one.

    Returns:
        `dict[str, Any]`, *optional*: JSON values; `None` for a model whose answers depend on more than that, which is
            one with hooks of others, with a strength for this call, or with weights that cannot be read.
    """
    if CURRENT.plan is not None or any(not _is_known(hook) for hook in _hooks(model)):
        return None
    try:
        weights = _hash_of({**dict(model.named_parameters()), **dict(model.named_buffers())})
    except (RuntimeError, TypeError, NotImplementedError):  # meta device, or kinds of numbers without bytes
        return None
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        "weights": weights,
        "config": _plain(base.config.to_dict()),
        "attention": str(base.config._attn_implementation),
        "generation_config": _plain(base.generation_config.to_dict()),
        "adapters": _adapters(model),
        "device": next(model.parameters()).device.type,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _adapters(model: nn.Module) -> dict[str, Any]:
    """Configurations of adapters, and the simple values that their layers hold: dials, switches, scalings."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    configs = model.peft_config if isinstance(model, PeftModel) else getattr(base, "peft_config", {})
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {
        "configs": {name: _plain(config.to_dict()) for name, config in configs.items()} if layers else {},
        "layers": {name: _plain(_settings(layer)) for name, layer in layers.items()},
    }


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Attributes of an adapter's layer: all but those in which torch keeps modules, tensors and hooks."""
    own = ("_active_adapter", "_disable_adapters")
    return {k: v for k, v in vars(layer).items() if k in own or not (k.startswith("_") or k == "training")}


def _plain(value: Any) -> Any:
    """A value as JSON types, without what has no such form (tensors, modules, functions) and without paths."""
    if isinstance(value, SIMPLE):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        found = {str(key): _plain(item) for key, item in value.items() if "name_or_path" not in str(key)}
        return {key: item for key, item in sorted(found.items()) if item is not NotImplemented}
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [item for item in map(_plain, value) if item is not NotImplemented]
    if isinstance(value, (slice, torch.dtype)):
        return str(value)
    return NotImplemented


def _hooks(model: nn.Module) -> Iterable[Callable[..., Any]]:
    for module in model.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


def _is_known(hook: Any) -> bool:
    return str(getattr(hook, "__module__", None) or "").startswith(KNOWN_HOOKS)


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes; tensors are hashed side by side."""
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(_digest, tensors.values()))
    return hashlib.sha256("\n".join(f"{n} {d}" for n, d in zip(tensors, parts, strict=True)).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    if is_traceable_wrapper_subclass(tensor):  # quantised weights made of several tensors
        names, _ = tensor.__tensor_flatten__()
        return "+".join(_digest(getattr(tensor, name)) for name in names)
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    content = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    found.update(content.numpy().data)
    return found.hexdigest()
