"""Value types that flow through the project: sites, scores of neurons, and selected neurons.

Vocabulary: a *site* is one module whose neurons are scaled; a *neuron* is a (site, index) pair; a *role* is `safety`,
`utility` or a user's own name; a *rank* is a neuron's place by score within its role.
"""

from neurontune_peft.neurons.scores import Scores
from neurontune_peft.neurons.selected import Neurons
from neurontune_peft.neurons.site import Site

__all__ = ["Neurons", "Scores", "Site"]
