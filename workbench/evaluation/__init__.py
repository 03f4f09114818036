"""How good a model is, on which slices, with which certainty, and whether that is enough."""
