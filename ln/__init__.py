"""Recurrent layers with layer, batch and weight normalization, and the experiments of the paper they come from."""

from importlib import metadata

import ln.convert as convert
from ln.averages import recompute_statistics
from ln.cells import GRUCell, LSTMCell, RNNCell
from ln.fast_weights import FastState, FastWeights, FastWeightsCell
from ln.norms import NormConfig
from ln.rnn import GRU, LSTM, RNN

try:
    __version__ = metadata.version("ln-suite")
except metadata.PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "FastState",
    "FastWeights",
    "FastWeightsCell",
    "GRUCell",
    "LSTMCell",
    "NormConfig",
    "RNNCell",
    "convert",
    "recompute_statistics",
]
