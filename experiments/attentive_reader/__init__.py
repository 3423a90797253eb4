"""The attentive reader (section 6.2, Figure 2)."""

from experiments.attentive_reader.task import AttentiveReaderTask

__all__ = ["AttentiveReaderTask"]
