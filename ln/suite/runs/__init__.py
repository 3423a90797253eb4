"""One run: its folder, its training loop, its mirror in Weights & Biases."""
