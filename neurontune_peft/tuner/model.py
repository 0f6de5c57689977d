"""The tuner: which modules are wrapped, with which neurons, and the dials of an attached adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils import get_quantization_kwargs
from torch import Tensor, nn
from transformers import PreTrainedModel

from neurontune_peft.neurons import Neurons
from neurontune_peft.sites import find_sites
from neurontune_peft.tuner.combine import Combining
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.dials import Dials
from neurontune_peft.tuner.dynamic import install_hooks
from neurontune_peft.tuner.fingerprint import fingerprint
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.loading import install_load_check
from neurontune_peft.tuner.merging import Merging
from neurontune_peft.tuner.names import PREFIX
from neurontune_peft.tuner.packing import unpack_before_saving, unpack_for_training
from neurontune_peft.tuner.requests import Requests
from neurontune_peft.tuner.rows import (
    CURRENT,
    RowPlan,
    adapter_names_for_saved_modules,
    check_row_count,
    make_plan,
    row_plan,
)
from neurontune_peft.tuner.targets import (
    check_sites,
    check_targets,
    dense_neurons,
    follow_renaming,
    in_chosen_layers,
    matching_modules,
    scaled_weight,
    selection_at,
    wrap,
)
from neurontune_peft.tuner.trigger import TRIGGER_DTYPE


class NeuronTuneModel(Combining, Dials, Requests, Merging):
    """
    A model whose neurons are scaled by an adapter.

    Several adapters can be active at once; a neuron's scale is then `1 + sum(strength * delta)`.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to be adapted.
        config ([`NeuronTuneConfig`]): The configuration of the adapter.
        adapter_name (`str`): The name of the adapter, defaults to `"default"`.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`): Create empty adapter weights on the meta device.

    Returns:
        `torch.nn.Module`: The model with the adapter attached.

    Example:

        ```py
        >>> import neurontune_peft
        >>> from peft import PeftModel
        >>> from transformers import AutoModelForCausalLM

        >>> model = AutoModelForCausalLM.from_pretrained("user/chat-model")
        >>> model = PeftModel.from_pretrained(model, "user/adapter")
        >>> model.set_strength(0.5)
        ```
    """

    prefix: str = PREFIX
    tuner_layer_cls = NeuronTuneLayer
    # Sites are found on the model itself (`find_sites`), for any architecture.
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: NeuronTuneConfig, model_config: dict) -> NeuronTuneConfig:
        follow_renaming(peft_config, self.model)
        if peft_config.target_modules is None and isinstance(peft_config.neurons, Neurons):
            peft_config.target_modules = list(peft_config.neurons.sites)
        elif peft_config.target_modules is None:
            # PEFT does not look at the layer of a module that is named in full, as these are.
            peft_config.target_modules = [name for name in self._sites() if in_chosen_layers(peft_config, name)]
        # PEFT expands "all-linear" only after it has called `_prepare_model`, which has to know the targets.
        return _maybe_include_all_linear_layers(peft_config, self.model)

    def _sites(self) -> list[str]:
        try:
            return list(find_sites(self.model))
        except ValueError as error:
            raise ValueError(f"{error}. Please specify `target_modules`.") from error

    def _prepare_model(self, peft_config: NeuronTuneConfig, model: nn.Module) -> None:
        # PEFT calls this before it replaces the first module, so a refusal here leaves the model as it was.
        targets = matching_modules(peft_config, model)
        check_targets(peft_config, model, targets)
        if peft_config.neuron_counts is None:
            peft_config.neurons = dense_neurons(targets, peft_config.neuron_side)
            peft_config.neuron_counts = peft_config.neurons.counts
        if isinstance(peft_config.neurons, Neurons):
            peft_config.site_widths = {site: peft_config.neurons.widths[site] for site in peft_config.neurons.sites}
        check_sites(peft_config, targets)
        self._check_fingerprint(peft_config, targets)
        unpack_before_saving(model)
        if not peft_config.inference_mode:
            unpack_for_training(model)

    def _check_fingerprint(self, config: NeuronTuneConfig, targets: dict[str, nn.Module]) -> None:
        found = fingerprint({name: scaled_weight(module) for name, module in targets.items()})
        if config.base_model_fingerprint is None:
            config.base_model_fingerprint = found
        elif found not in (None, config.base_model_fingerprint):
            name = getattr(getattr(self.model, "config", None), "_name_or_path", None) or type(self.model).__name__
            message = (
                f"got base model '{name}' (weights {found:.12}); expected '{config.base_model_name_or_path}' (weights "
                f"{config.base_model_fingerprint:.12}), for which this adapter was made; load that model or tune again"
            )
            if config.strict:
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's option: deltas in float32 as they are made, or in the dtype of the weights that they scale."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.neuron_layers(adapter_name).values():
            if adapter_name in layer.neurontune_trigger:  # a trigger has one dtype, in files and in memory
                layer.neurontune_trigger[adapter_name] = layer.neurontune_trigger[adapter_name].to(TRIGGER_DTYPE)
        for layer in () if autocast_adapter_dtype else self.neuron_layers(adapter_name).values():
            weight = scaled_weight(layer)
            if weight is not None and weight.is_floating_point():
                delta = layer.neurontune_delta[adapter_name]
                delta.data = delta.data.to(weight.dtype)

    def _create_and_replace(
        self,
        peft_config: NeuronTuneConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        selected = selection_at(peft_config, current_key.removeprefix("_orig_mod."))
        if not selected:
            return
        if isinstance(target, NeuronTuneLayer):
            layer = target
        else:
            layer = wrap(target, peft_config.neuron_side, **get_quantization_kwargs(self.model))
        layer.update_layer(
            adapter_name,
            selected=selected,
            init_weights=peft_config.init_weights,
            inference_mode=peft_config.inference_mode,
            dynamic=peft_config.modulation == "dynamic",
        )
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)
        layer.leave_to_loader(adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if hasattr(child, "weight"):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # PEFT would copy a `weight`, which fused experts do not have
            setattr(parent, child_name, new_module)

    def _post_injection_hook(self, model: nn.Module, config: NeuronTuneConfig, adapter_name: str) -> None:
        # On the base model, not on this tuner: `inject_adapter_in_model` throws the tuner away.
        install_load_check(model)
        if config.modulation == "dynamic":
            install_hooks(model)

    def train(self, mode: bool = True) -> NeuronTuneModel:
        if mode:
            unpack_for_training(self)
        super().train(mode)
        return self

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT enters this around every forward pass and generation, with the call's keyword arguments.
        plan = self._plan(kwargs.get("adapter_names"), kwargs.get("neurontune_strength"))
        # Without a task, PEFT goes on to the base model and past our `forward`. Models that are not from transformers
        # call their input as they like; it is their first tensor.
        tensors = tuple(value for value in kwargs.values() if isinstance(value, Tensor))
        check_row_count(plan, args if args or isinstance(self.model, PreTrainedModel) else tensors, kwargs)
        with row_plan(plan), adapter_names_for_saved_modules(self.model, kwargs.get("adapter_names")):
            yield

    def _plan(self, adapter_names: Sequence[str] | None, strengths: Any) -> RowPlan | None:
        if adapter_names is None and strengths is None:
            return CURRENT.plan
        layers = [module for module in self.model.modules() if isinstance(module, NeuronTuneLayer)]
        if self.training or any(layer.merged for layer in layers):
            state = "in training mode" if self.training else "with a merged adapter"
            raise ValueError(
                f"got adapter_names or neurontune_strength for a model {state}; expected one in evaluation mode with "
                "unmerged adapters; call eval() and unmerge_adapter() first"
            )
        device = layers[0].neurontune_delta[next(iter(layers[0].neurontune_delta))].device
        return make_plan(adapter_names=adapter_names, strengths=strengths, known=list(self.peft_config), device=device)

    @contextmanager
    def strength_per_row(self, strengths: Sequence[float] | Tensor) -> Iterator[None]:
        """
        Give each request of a batch its own strength for the duration of a `with` block.

        The same as the argument `neurontune_strength` of a call, for code that makes the call itself, such as a
        pipeline. Other threads are not affected.

        Args:
            strengths (`Sequence[float]` or `torch.Tensor`): One strength per request, shape `(B,)`.

        Raises:
            ValueError: When a strength is not finite, or the model is merged or in training mode.
        """
        with row_plan(self._plan(None, strengths)):
            yield

    def forward(self, *args: Any, neurontune_strength: Any = None, **kwargs: Any) -> Any:
        check_row_count(CURRENT.plan, args, kwargs)
        return super().forward(*args, **kwargs)

    def generate(self, *args: Any, neurontune_strength: Any = None, **kwargs: Any) -> Any:
        """The base model's `generate`; PEFT has put the strengths into the plan of this call already."""
        check_row_count(CURRENT.plan, args, kwargs)
        model: Any = self.model
        return model.generate(*args, **kwargs)

    def get_neurons(self, adapter_name: str = "default") -> Neurons:
        """
        The neurons of an adapter with their ranks.

        Args:
            adapter_name (`str`, *optional*, defaults to `"default"`): The adapter.
        """
        indices: dict[str, dict[str, Tensor]] = {}
        ranks: dict[str, dict[str, Tensor]] = {}
        layers = self.neuron_layers(adapter_name)
        for site, layer in layers.items():
            for role, part in layer.roles[adapter_name].items():
                indices.setdefault(role, {})[site] = layer.neurontune_index[adapter_name][part].long().cpu()
                ranks.setdefault(role, {})[site] = layer.neurontune_rank[adapter_name][part].long().cpu()
        widths = {site: layer.width for site, layer in layers.items()}
        return Neurons(indices=indices, ranks=ranks, widths=widths)
