"""Recurrent layers with layer, batch and weight normalization, and the experiments of the paper they come from."""

from ln.norms import NormConfig
from ln.rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, recompute_statistics

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "NormConfig", "recompute_statistics"]
