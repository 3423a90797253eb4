"""The backends of the recurrent layers: one contract, four implementations, and the choice between them."""

from ln.kernels.choice import BACKENDS, load, name_of, resolve, torch_is_fastest
from ln.kernels.contract import Backend, sequence, step
from ln.kernels.graphs import graphs_allowed, use_graphs

__all__ = [
    "BACKENDS",
    "Backend",
    "graphs_allowed",
    "load",
    "name_of",
    "resolve",
    "sequence",
    "step",
    "torch_is_fastest",
    "use_graphs",
]
