"""Small models of one's own with `ln`'s layers. They import torch and `ln` alone."""
