"""A language model's projections and fused experts, by the names they have in the bare model, whatever wraps them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

# Parts of a multimodal, byte-level or multi-token model that are not its language model: encoders of other
# modalities and what joins them to it, Blt's patcher, and the heads.
_OTHER_PART = re.compile(
    r"(^|_)(vision|visual|image|img|vq\w*|video|audio|speech|codec|(\w+_)?projector|connector|resampler|perceiver"
    r"|qformer|patcher|talker|\w+2wav|depth_decoder|mtp\w*|nextn\w*|\w*lm_heads?)(_|$)"
)
# Sequence mixers by name or class; `_holds_a_mixer` knows them by what they hold.
_MIXER_NAME = re.compile(
    r"^(?!.*norm).*((?<!post_)(?<!pre_)(attn|attention)|mamba|lstm|(^|_)(ssm|rnn|conv)(_|$))", re.IGNORECASE
)
_MIXER_CLASS = re.compile(r"(Attention|Attn|Mixer|DeltaNet)\d*$")
_QUERY_NAME = re.compile(r"^(w?q|w?qkv|query|c_attn)(_|$)", re.IGNORECASE)
_ROUTER_NAME = re.compile(r"(^|_)(router|gate)(_|$)")
# A product of two matrices without an activation between them has no neurons: the low-rank residual of Gemma 3n.
_LOW_RANK_NAME = re.compile(r"(^|_)laurel(_|$)")
_DOWN_NAME = re.compile(r"down|w2|output")


@dataclass(frozen=True)
class Projection:
    """
    A module that maps `inputs` features to `outputs` features, or a layer's fused experts, which do so side by side.

    Args:
        name (`str`): Path in the bare model.
        inputs (`int`): Input features; of fused experts, the intermediate size of one expert.
        outputs (`int`): Output features; of fused experts, the size of the stream they read and write.
        experts (`int`, *optional*, defaults to `0`): Number of fused experts; 0 for a single projection.
    """

    name: str
    inputs: int
    outputs: int
    experts: int = 0

    @property
    def kind(self) -> Literal["linear", "experts"]:
        """Kind of the site that this projection can be."""
        return "experts" if self.experts else "linear"

    @property
    def width(self) -> int:
        """Number of neurons: the input features, of all experts together."""
        return self.inputs * max(1, self.experts)


def bare_model(model: nn.Module) -> nn.Module:
    """Return the causal LM inside a `PeftModel` or a tuner's model; any other module is returned as it is."""
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    return model.model if isinstance(model, BaseTuner) else model


def language_model(model: nn.Module) -> tuple[str, nn.Module]:
    """
    Return the path and the module of the part of a bare model that produces text.

    Args:
        model (`nn.Module`): A bare causal LM; also a wrapper with towers of other modalities, or an encoder-decoder.

    Returns:
        `tuple[str, nn.Module]`: The innermost decoder that transformers' `get_decoder` names; else the model, as `""`.

    Raises:
        ValueError: When the model is an encoder-decoder that does not say which part is its decoder.
    """
    part = model
    while (decoder := _decoder(part)) is not part:
        part = decoder
    if part is model and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"got the encoder-decoder {type(model).__name__}; expected a causal LM or a model whose `get_decoder` "
            "returns its decoder; name the decoder's MLP output projections in `target_modules`"
        )
    return next((name, module) for name, module in walk(model) if module is part)


def _decoder(part: nn.Module) -> nn.Module:
    get_decoder = getattr(part, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    # A causal LM may call its output matrix `decoder`, which `get_decoder` then takes for the decoder.
    return part if decoder is None or next(decoder.children(), None) is None else decoder


def hidden_sizes(model: nn.Module) -> frozenset[int]:
    """Return the widths of the residual streams of a bare model's language part; empty when its config names none."""
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}) if _is_text(part))]
    sizes = (getattr(part, "hidden_size", None) for part in parts)
    return frozenset(size for size in sizes if isinstance(size, int))


def walk(module: nn.Module, name: str = "", *, prune: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """
    Yield modules with their paths, parents first, as `named_modules` does for the model without adapters.

    Args:
        module (`nn.Module`): Where to start.
        name (`str`, *optional*, defaults to `""`): Path of `module`.
        prune (`bool`, *optional*, defaults to `False`):
            Leave out what can hold no MLP: other modalities, sequence mixers, routers and heads.
    """
    seen: set[int] = set()
    stack = [(name, module)]
    while stack:
        name, module = stack.pop()
        module = _bare_module(module)
        if id(module) in seen or (prune and _holds_no_mlp(name, module)):
            continue
        seen.add(id(module))
        yield name, module
        children = [(f"{name}.{child}" if name else child, part) for child, part in module.named_children()]
        stack.extend(reversed(children))


def projections(model: nn.Module, *, prune: bool = True) -> list[Projection]:
    """
    List the projections and fused experts of a bare model's language part, in the model's order.

    Args:
        model (`nn.Module`): A bare causal LM.
        prune (`bool`, *optional*, defaults to `True`): Leave out those that cannot belong to an MLP.
    """
    prefix, part = language_model(model)
    sizes = hidden_sizes(model)
    found = (as_projection(name, module, sizes) for name, module in walk(part, prefix, prune=prune))
    return [projection for projection in found if projection is not None]


def unknown_experts(model: nn.Module, known: Collection[str]) -> list[str]:
    """
    Return the classes of experts that hold their own weights, next to which no site is known.

    Args:
        model (`nn.Module`): A bare causal LM.
        known (`Collection[str]`): Paths of the known sites.
    """
    prefix, part = language_model(model)
    around = {name.rpartition(".")[0] for name in known} | set(known)
    return sorted(
        {
            type(module).__name__
            for name, module in walk(part, prefix, prune=True)
            if "Expert" in type(module).__name__
            and any(p.ndim > 1 for p in module.parameters(recurse=False))
            and not {name, name.rpartition(".")[0]} & around
        }
    )


def as_projection(name: str, module: nn.Module, sizes: frozenset[int] = frozenset()) -> Projection | None:
    """
    Describe a module when it is a linear map (`nn.Linear`, `Conv1D`, a quantised one) or fused experts.

    Args:
        name (`str`): Path of the module.
        module (`nn.Module`): A bare module.
        sizes (`frozenset[int]`, *optional*): Hidden sizes, which tell an expert's two dimensions apart.
    """
    if isinstance(module, Conv1D):
        return Projection(name, *module.weight.shape)
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int) and next(module.children(), None) is None:
        return Projection(name, inputs, outputs)
    return _as_experts(name, module, sizes)


def _as_experts(name: str, module: nn.Module, sizes: frozenset[int]) -> Projection | None:
    weights = {key: p for key, p in module.named_parameters(recurse=False) if p.ndim == 3}
    down = next((p for key, p in weights.items() if _DOWN_NAME.search(key)), None)
    if down is None and "Expert" in type(module).__name__ and _DOWN_NAME.search(name.rpartition(".")[2]):
        down = weights.get("weight")  # each matrix of the experts is a module of its own
    if down is None:
        return None
    experts, outputs, inputs = down.shape
    if down.dtype == torch.uint8:  # two 4-bit numbers in a byte
        return Projection(name, 2 * inputs, outputs, experts)
    others = [tuple(p.shape[1:]) for p in weights.values() if p is not down]
    if _is_transposed(outputs, inputs, others, sizes):
        outputs, inputs = inputs, outputs
    return Projection(name, inputs, outputs, experts)


def _is_transposed(rows: int, columns: int, others: list[tuple[int, ...]], sizes: frozenset[int]) -> bool:
    """Whether experts are stored as (E, I, H) and not (E, H, I): H is a hidden size, or what `gate_up` has as well."""
    if (rows in sizes) != (columns in sizes):
        return columns in sizes

    def fits(hidden: int, inputs: int) -> bool:
        return any(sorted(shape) in (sorted((hidden, inputs)), sorted((hidden, 2 * inputs))) for shape in others)

    return fits(columns, rows) and not fits(rows, columns)


def _bare_module(module: nn.Module) -> nn.Module:
    """Return what an adapter layer or a `modules_to_save` wrapper stands for in the bare model."""
    if isinstance(module, BaseTunerLayer):
        return _bare_module(module.get_base_layer())
    return _bare_module(module.original_module) if isinstance(module, AuxiliaryTrainingWrapper) else module


def _is_text(part: str) -> bool:
    return _OTHER_PART.search(part) is None


def _holds_no_mlp(name: str, module: nn.Module) -> bool:
    parents, _, last = name.rpartition(".")
    if _OTHER_PART.search(last) or _MIXER_NAME.match(last) or _LOW_RANK_NAME.search(last):
        return True
    if last.isdigit() or not any(part.isdigit() for part in parents.split(".")):
        return False  # a whole layer, or a container of layers
    return bool(_MIXER_CLASS.search(type(module).__name__)) or _is_router(last, module) or _holds_a_mixer(module)


def _is_router(last: str, module: nn.Module) -> bool:
    """Whether a module decides over experts; a bare Linear called `gate` may be the gate of a gated MLP."""
    return bool(_ROUTER_NAME.search(last)) and next(module.children(), None) is not None


def _holds_a_mixer(module: nn.Module) -> bool:
    """Whether a module mixes positions itself: a convolution, a state-space matrix or queries."""
    if "A_log" in dict(module.named_parameters(recurse=False)):
        return True
    return any(isinstance(child, nn.Conv1d) or _QUERY_NAME.search(name) for name, child in module.named_children())
