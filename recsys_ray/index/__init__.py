"""ANN structure over item vectors, with an exact oracle beside it."""
