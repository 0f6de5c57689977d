"""What if we only push the residual stream? Activation steering along the refusal direction, a control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neurontune_peft.prompts import PromptSet, encode
from neurontune_peft.prompts.answers import evaluating
from neurontune_peft.sites import find_sites


def block_names(model: nn.Module) -> list[str]:
    """
    Names of a model's blocks, first to last.

    Raises:
        ValueError: When its modules are not numbered.
    """
    names: dict[str, None] = {}
    for site in find_sites(model):
        parts = site.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if number is not None:
            names[".".join(parts[: number + 1])] = None
    if not names:
        raise ValueError(
            "got a model without numbered blocks; expected some to steer; leave the method 'steering' out"
        )
    return list(names)


def refusal_direction(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    block: str,
    *,
    batch_size: int = 16,
    chat_template: str | None = None,
) -> Tensor:
    """
    Mean of a block's output at the last prompt token over harmful train requests, less that over benign ones
    (arXiv 2406.11717, equation 1).

    Args:
        model (`nn.Module`): A causal LM.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Where the requests come from.
        block (`str`): Name of the block.
        batch_size (`int`, *optional*, defaults to `16`): Requests at once.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        `Tensor`: Shape `(H,)`, float32.
    """
    texts = {kind: [p.prompt for p in prompts.select(kind=kind, split="train")] for kind in ("harmful", "benign")}
    if not all(texts.values()):
        raise ValueError(
            f"got {len(texts['harmful'])} harmful and {len(texts['benign'])} benign train prompts; expected some of "
            "both for a refusal direction; add them"
        )
    means = [
        _last_token_mean(model, tokenizer, found, block, batch_size=batch_size, chat_template=chat_template)
        for found in texts.values()
    ]
    return (means[0] - means[1]).float()


@torch.no_grad()
def _last_token_mean(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], block: str, *, batch_size: int, chat_template: str | None
) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(block).register_forward_hook(lambda m, i, output: seen.append(_hidden(output)))
    total: Tensor | int = 0
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for start in range(0, len(texts), batch_size):
                batch = encode(tokenizer, texts[start : start + batch_size], chat_template=chat_template).to(device)
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
                last = seen.pop()[torch.arange(len(batch)), batch.last_prompt]  # (B, T, H) -> (B, H)
                total = total + last.double().sum(dim=0)
    finally:
        handle.remove()
    return total / len(texts)  # type: ignore[return-value]


@contextmanager
def steered(model: nn.Module, block: str, direction: Tensor, coefficient: float) -> Iterator[None]:
    """
    Add a multiple of a direction to a block's output at every token (arXiv 2406.11717, activation addition).

    Args:
        model (`nn.Module`): A causal LM; it is restored afterwards.
        block (`str`): Name of the block.
        direction (`Tensor`): Shape `(H,)`.
        coefficient (`float`): The multiple; with 0 the model is not touched.
    """

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        moved = _hidden(output) + coefficient * direction.to(_hidden(output))  # (B, T, H)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = model.get_submodule(block).register_forward_hook(add) if coefficient else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


class Unsteered(nn.Module):
    """
    The same model without its steering, to measure the KL from.

    Args:
        model (`nn.Module`): The model.
        block (`str`): The block that is steered.
    """

    def __init__(self, model: nn.Module, block: str) -> None:
        super().__init__()
        self.model, self._block = model, block

    def get_base_model(self) -> nn.Module:
        """The model, as PEFT's wrappers give it."""
        return self.model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the hooks of the block put aside."""
        block = self.model.get_submodule(self._block)
        hooks = dict(block._forward_hooks)
        block._forward_hooks.clear()
        try:
            return self.model(*args, **kwargs)
        finally:
            block._forward_hooks.update(hooks)


def _hidden(output: Any) -> Tensor:
    """A block's residual stream; some architectures return it in a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
