"""Scores as a value: families, agreement, and a file that older and newer code can read."""

import pytest
import torch
from safetensors.torch import save_file

from neurontune_peft.neurons import Scores

VALUES = {"safety": {"a": torch.tensor([3.0, 1.0, 0.0]), "b": torch.tensor([2.0, -1.0])}}
FAMILIES = {
    "persona": {"a": torch.tensor([5.0, 0.0, 1.0]), "b": torch.tensor([4.0, 0.0])},
    "pre/fix": {"a": torch.tensor([0.0, 2.0, 1.0]), "b": torch.tensor([3.0, 0.0])},
}


def test_agreement_counts_the_families_that_put_a_neuron_on_top():
    scores = Scores(VALUES, by_family=FAMILIES)
    assert {site: votes.tolist() for site, votes in scores.agreement(1).items()} == {"a": [1, 0, 0], "b": [1, 0]}
    assert {site: votes.tolist() for site, votes in scores.agreement(2).items()} == {"a": [1, 1, 0], "b": [2, 0]}
    assert scores.agreement(5)["a"].dtype == torch.int64
    assert all((votes == 2).all() for votes in scores.agreement(5).values())


def test_agreement_needs_families_and_a_possible_count():
    with pytest.raises(ValueError, match="got scores without attack families"):
        Scores(VALUES).agreement(1)
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"got count={count}; expected 1 to 5 neurons"):
            Scores(VALUES, by_family=FAMILIES).agreement(count)


def test_scores_per_family_survive_the_file(tmp_path):
    Scores(VALUES, {"method": "gradient"}, FAMILIES).save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert list(loaded.by_family) == ["persona", "pre/fix"]
    torch.testing.assert_close(loaded.by_family, FAMILIES, rtol=0, atol=0)
    torch.testing.assert_close(loaded.values, VALUES, rtol=0, atol=0)
    assert loaded.metadata == {"method": "gradient"}


def test_files_from_before_families_load(tmp_path):
    tensors = {"safety/a": VALUES["safety"]["a"]}
    save_file(tensors, tmp_path / "old.safetensors", metadata={"method": "gate_path", "order": '[["safety", "a"]]'})
    loaded = Scores.load(tmp_path / "old.safetensors")
    assert loaded.by_family == {}
    assert loaded.metadata == {"method": "gate_path"}
    torch.testing.assert_close(loaded.values["safety"], {"a": VALUES["safety"]["a"]})


def test_a_family_scored_at_other_neurons_is_refused():
    with pytest.raises(ValueError, match=r"got scores of family 'persona' at other neurons.*expected the same sites"):
        Scores(VALUES, by_family={"persona": {"a": torch.ones(3)}})
    with pytest.raises(ValueError, match="NaN or infinite score for family 'persona' at 'a', neuron 1"):
        Scores(VALUES, by_family={"persona": {"a": torch.tensor([0.0, float("nan"), 0.0]), "b": torch.ones(2)}})
