"""The structural rule: MLP output projections of an unknown architecture, by the shapes of its modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from neurontune_peft.sites.modules import Projection


def find_by_structure(candidates: Sequence[Projection], sizes: Collection[int]) -> list[Projection]:
    """
    Find the output projections of MLPs by their shapes.

    An output projection maps to the hidden size H, and an earlier projection of the same smallest block of a layer
    maps H to its input features I, or to 2I (gate and up in one). Fused experts are always MLPs.

    Args:
        candidates (`Sequence[Projection]`): Projections outside sequence mixers, in the model's order.
        sizes (`Collection[int]`): Hidden sizes of the language model; empty when unknown, and then any size is one.

    Returns:
        `list[Projection]`: The output projections, in the model's order.
    """
    found = {p.name for p in candidates if p.experts}
    paired: set[str] = set()  # what belongs to a pair in a small block cannot pair again in a larger one
    for block in _blocks(candidates):
        streams = {p.outputs for p in block if p.experts}
        for index in reversed(range(len(block))):
            down, earlier = block[index], block[:index]
            if down.experts or down.name in paired or (sizes and down.outputs not in sizes):
                continue
            if down.inputs in streams and down.outputs not in streams:
                continue  # the way back from a narrower stream in which only the experts work
            partners = [up.name for up in earlier if up.name not in paired and _feeds(up, down)]
            if partners:
                found.add(down.name)
                paired.update(partners, (down.name,))
    return [p for p in candidates if p.name in found]


def _feeds(up: Projection, down: Projection) -> bool:
    return not up.experts and up.inputs == down.outputs and up.outputs in (down.inputs, 2 * down.inputs)


def _blocks(candidates: Iterable[Projection]) -> list[list[Projection]]:
    """Group projections by each module around them that lies in a numbered layer, the innermost modules first."""
    blocks: dict[tuple[str, ...], list[Projection]] = {}
    for projection in candidates:
        parents = projection.name.split(".")[:-1]
        for length in range(1, len(parents) + 1):
            if any(part.isdigit() for part in parents[:length]):
                blocks.setdefault(tuple(parents[:length]), []).append(projection)
    return [blocks[path] for path in sorted(blocks, key=len, reverse=True)]
