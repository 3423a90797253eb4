"""Order embeddings (section 6.1, Figure 1 and Table 2)."""

from experiments.order_embeddings.task import OrderEmbeddings

__all__ = ["OrderEmbeddings"]
