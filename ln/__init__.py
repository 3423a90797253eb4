"""Recurrent layers with layer, batch and weight normalization, and the experiments of the paper they come from."""

from ln.cells import GRUCell, LSTMCell
from ln.fast_weights import FastState, FastWeights
from ln.norms import NormConfig
from ln.parameters import recompute_statistics
from ln.rnn import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "FastState",
    "FastWeights",
    "GRUCell",
    "LSTMCell",
    "NormConfig",
    "recompute_statistics",
]
