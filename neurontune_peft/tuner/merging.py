"""Merging an adapter into every layer or, on any failure, into none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from neurontune_peft.tuner.dynamic import remove_hooks
from neurontune_peft.tuner.loading import remove_load_check
from neurontune_peft.tuner.merge import MergeableLayer
from neurontune_peft.tuner.quantized import QuantizedLinear, compute_dtype, leave_unquantized, rounding_warning


class Merging(BaseTuner):
    """Methods of [`NeuronTuneModel`] that fold adapters into the base model."""

    def merge_adapter(
        self,
        adapter_names: list[str] | None = None,
        safe_merge: bool = False,
        *,
        strength: float | None = None,
    ) -> None:
        """
        Fold adapters into the weights until `unmerge_adapter`, which restores them bit for bit, quantised ones too.

        Args:
            adapter_names (`list[str]`, *optional*): Adapters to merge; the active ones by default.
            safe_merge (`bool`, *optional*, defaults to `False`): Look for NaN and infinite values before writing.
            strength (`float`, *optional*):
                Multiplies the deltas that are merged. Required for adapters with dynamic modulation, which weights
                cannot express: merged, they act on every request.

        Raises:
            ValueError: When an adapter is broken, quantised weights cannot be written back, or `strength` is missing
                for a dynamic adapter; nothing is changed.
        """
        self._set_merge_strength(adapter_names, strength)
        quantized = self._quantized_layers(adapter_names)
        for layer in quantized.values():
            layer.check_mergeable()
        with self._all_or_none():
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        if message := rounding_warning(quantized.values()):
            warnings.warn(message, stacklevel=2)

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        dequantize: bool = False,
        strength: float | None = None,
    ) -> nn.Module:
        """
        Fold adapters into the weights and take the adapter layers off.

        Args:
            progressbar (`bool`, *optional*, defaults to `False`): Show progress.
            safe_merge (`bool`, *optional*, defaults to `False`): Look for NaN and infinite values before writing.
            adapter_names (`list[str]`, *optional*): Adapters to merge; the active ones by default.
            dequantize (`bool`, *optional*, defaults to `False`):
                Put plain `nn.Linear` modules, in the dtype of the activations, in the place of the quantised modules
                that hold neurons of the adapters, so that the scales are not rounded. The rest stays quantised.
            strength (`float`, *optional*): As in [`~NeuronTuneModel.merge_adapter`].

        Returns:
            `torch.nn.Module`: The base model.

        Raises:
            ValueError: As in [`~NeuronTuneModel.merge_adapter`], or a library cannot dequantise its weights; nothing
                is changed.
        """
        model: nn.Module
        with self._dequantized(adapter_names) if dequantize else nullcontext():
            self.merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge, strength=strength)
        with warnings.catch_warnings():
            # PEFT merges again as it unloads, and says so.
            warnings.filterwarnings("ignore", "All adapters are already merged")
            model = super().merge_and_unload(progressbar=progressbar, adapter_names=adapter_names)
        remove_load_check(model)
        remove_hooks(model)
        return model

    def unload(self) -> nn.Module:
        """Take the adapter layers off; returns the base model."""
        model: nn.Module = super().unload()
        remove_load_check(model)
        remove_hooks(model)
        return model

    def _set_merge_strength(self, adapter_names: list[str] | None, strength: float | None) -> None:
        """Tell layers at which strength to merge; refuse a dynamic adapter without one."""
        layers = [module for module in self.model.modules() if isinstance(module, MergeableLayer)]
        merged = {name for layer in layers for name in layer.merged_adapters}
        names = [n for n in (self.active_adapters if adapter_names is None else adapter_names) if n not in merged]
        dynamic = [n for n in names if n in self.peft_config and self.peft_config[n].modulation == "dynamic"]
        if strength is None and dynamic:
            raise ValueError(
                f"got adapters {dynamic} with dynamic modulation and no strength; expected one, as merged weights "
                "cannot decide for each request and act on all of them; pass strength=1.0 to write the static adapter"
            )
        if strength is not None and not math.isfinite(strength):
            raise ValueError(f"got strength={strength}; expected a finite number; 0 is the base model, 1 the adapter")
        for layer in layers:
            layer.merge_strengths.update(dict.fromkeys(names, 1.0 if strength is None else float(strength)))

    def _quantized_layers(self, adapter_names: list[str] | None) -> dict[str, QuantizedLinear]:
        names = self.active_adapters if adapter_names is None else adapter_names
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, QuantizedLinear)}
        return {
            site: layer
            for site, layer in layers.items()
            if layer.is_quantized and any(name in layer.neurontune_delta for name in names)
        }

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Bring every layer back to what was merged in it before, should the block fail."""
        layers = [module for module in self.model.modules() if isinstance(module, MergeableLayer)]
        before = [(layer, list(layer.merged_adapters)) for layer in layers]
        try:
            yield
        except BaseException:
            for layer, merged in before:
                layer.unmerge()
                if merged:
                    layer.merge(adapter_names=merged)
            raise

    @contextmanager
    def _dequantized(self, adapter_names: list[str] | None) -> Iterator[None]:
        """Dequantise the layers that adapters change; back to the quantised ones, should the block fail."""
        layers, dtype = self._quantized_layers(adapter_names), compute_dtype(self.model)
        replaced: list[tuple[QuantizedLinear, tuple[Any, Any]]] = []
        with self._all_or_none():
            merged = {site: list(layer.merged_adapters) for site, layer in layers.items()}
            try:
                for site, layer in layers.items():
                    replaced.append((layer, layer.dequantize(dtype)))
                    if merged[site]:
                        layer.merge(adapter_names=merged[site])
                yield
            except BaseException:
                for layer, (base, backend) in replaced:
                    layer.unmerge()
                    layer.base_layer, layer.quantization_backend = base, backend
                raise
        leave_unquantized(self.model, layers)
