"""ConvPool-CNN-C (section 6.7)."""

from experiments.convnet.task import ConvNet

__all__ = ["ConvNet"]
