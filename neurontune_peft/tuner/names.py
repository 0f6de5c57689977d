"""Names that PEFT, the file format and the layers share."""

METHOD = "NEURONTUNE"
# PEFT finds an adapter's tensors by this prefix, so it begins the name of every attribute that is saved.
PREFIX = "neurontune_"
DELTA, INDEX, RANK = "neurontune_delta", "neurontune_index", "neurontune_rank"
SAVED = (DELTA, INDEX, RANK)
# Saved beside them by adapters with dynamic modulation only.
TRIGGER = "neurontune_trigger"
# The role of an adapter that scales every neuron of its sites.
DENSE_ROLE = "all"
# Stands in an adapter whose tensors have not been loaded yet; no real neuron has this index.
NOT_LOADED = -1
