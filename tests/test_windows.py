"""Means over short windows of a turn: what they are, and that they do not depend on what stands beside a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurontune_peft.tuner.windows import highest_window, window_means


def by_hand(tokens, window):
    """Means over windows that begin every half a window, as long as they bring in another token."""
    half = len(tokens) if window is None else window // 2
    starts = [s for s in range(0, len(tokens), max(1, half)) if s == 0 or s + half < len(tokens)]
    return [tokens[s : s + 2 * half].mean(dim=0) for s in starts]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    window=st.sampled_from([None, 2, 4, 6, 24]),
    before=st.integers(0, 9),
    behind=st.integers(0, 9),
    wide=st.booleans(),
)
def test_windows_begin_every_half_a_window_and_end_with_the_turn(lengths, window, before, behind, wide):
    size = before + max(lengths) + behind
    values = torch.randn(len(lengths), size, *((3,) if wide else ()), generator=torch.Generator().manual_seed(0))
    turn = torch.zeros(len(lengths), size, dtype=torch.bool)
    for row, length in enumerate(lengths):
        turn[row, before : before + length] = True
    means, exists = window_means(values, turn, window)
    for row, length in enumerate(lengths):
        expected = torch.stack(by_hand(values[row, before : before + length], window))
        assert int(exists[row].sum()) == len(expected)
        assert bool(exists[row, : len(expected)].all())  # the first ones
        torch.testing.assert_close(means[row][exists[row]], expected, rtol=1e-5, atol=1e-5)
        own = slice(before, before + length)
        alone, found = window_means(values[row : row + 1, own], turn[row : row + 1, own], window)
        if window is not None:  # bit for bit, whatever the padding
            assert torch.equal(alone[0][found[0]], means[row][exists[row]])


def test_the_highest_window_counts_and_an_empty_turn_counts_nothing():
    scores = torch.tensor([[9.0, 1.0, 3.0, 5.0, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    turn = torch.tensor([[False, True, True, True, True, False], [False] * 6])
    assert highest_window(scores, turn, 2).tolist() == [4.0, 0.0]
    assert highest_window(scores, turn, 4).tolist() == [2.5, 0.0]
    assert highest_window(-scores, turn, 2).tolist() == [-2.0, 0.0]  # no window beyond the turn counts as 0
    assert highest_window(scores, turn, None).tolist() == [2.5, 0.0]


@pytest.mark.parametrize("window", [4, 24])
def test_text_around_a_window_does_not_dilute_it(window):
    scores = torch.zeros(2, 400)
    scores[0, 200 : 200 + window] = 1.0
    scores[1, :window] = 1.0
    turn = torch.ones(2, 400, dtype=torch.bool)
    turn[1, window:] = False
    assert highest_window(scores, turn, window)[0] >= 0.75 * highest_window(scores, turn, window)[1]
    assert highest_window(scores, turn, None)[0] == pytest.approx(window / 400)
