"""Figures, tables, the page and W&B workspaces."""
