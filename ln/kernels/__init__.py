"""The backends of the recurrent layers: one contract, four implementations, and the choice between them."""

from ln.kernels.choice import BACKENDS, load, name_of, resolve

__all__ = ["BACKENDS", "load", "name_of", "resolve"]
