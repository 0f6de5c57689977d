"""Who computes what? The tasks of a step are dealt to the processes, and their means are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed

from neurontune_peft.training.outer import Outer, mean_of


def process() -> tuple[int, int]:
    """This process's number and how many there are; accelerate and torchrun set up the group that is asked here."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def check_divisible(accumulation: int) -> None:
    """
    Refuse a number of tasks per step that cannot be dealt evenly.

    Raises:
        ValueError: When the processes would get different numbers of tasks.
    """
    _, count = process()
    if accumulation % count:
        raise ValueError(
            f"got accumulation={accumulation} with {count} processes; expected a multiple of {count}, since the tasks "
            "of a step are dealt to the processes; raise accumulation"
        )


def over_tasks(gradient: Callable[[int], Outer], step: int, accumulation: int) -> Outer:
    """
    The mean of a step's tasks, whoever computes them.

    Args:
        gradient (`Callable`): From the number of a task to its [`Outer`].
        step (`int`): The step.
        accumulation (`int`): Tasks per step; a multiple of the number of processes.
    """
    rank, count = process()
    share = accumulation // count
    first = step * accumulation + rank * share
    mine = mean_of([gradient(number) for number in range(first, first + share)])
    return mine if count == 1 else _mean_over_processes(mine, count)


def _mean_over_processes(outer: Outer, count: int) -> Outer:
    sizes = [gradient.numel() for gradient in outer.gradients]
    device = outer.gradients[0].device
    numbers = [outer.safety, *outer.costs.values(), *outer.inner]
    # One message: the numbers travel as float32 gradients do.
    packed = torch.cat([*(g.reshape(-1).float() for g in outer.gradients), torch.tensor(numbers, device=device)])
    distributed.all_reduce(packed)
    *gradients, means = (packed / count).split([*sizes, len(numbers)])
    safety, costs = float(means[0]), means[1 : 1 + len(outer.costs)].tolist()
    return Outer(
        "+".join(gathered_texts(outer.family, count, device)),
        gradients=[part.to(old.dtype) for part, old in zip(gradients, outer.gradients, strict=True)],
        safety=safety,
        costs=dict(zip(outer.costs, costs, strict=True)),
        inner=tuple(means[1 + len(costs) :].tolist()),
    )


def gathered_texts(text: str, count: int, device: torch.device) -> list[str]:
    """
    The text of every process; torch's own way of sending objects pickles them.

    Args:
        text (`str`): This process's text.
        count (`int`): How many processes there are.
        device (`torch.device`): A device that the processes can exchange tensors from.

    Returns:
        `list[str]`: The texts, in the order of the processes.
    """
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(count)]
    distributed.all_gather(sizes, torch.tensor([len(data)], device=device))
    longest = max(int(size) for size in sizes)
    rows = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(count)]
    distributed.all_gather(rows, torch.nn.functional.pad(data, (0, longest - len(data))))
    return [row[: int(size)].cpu().numpy().tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
