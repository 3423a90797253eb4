"""Claims judged from measured runs."""
