"""Backend `torch`: hand-written backward passes in plain PyTorch, for any device."""
