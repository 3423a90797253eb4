"""Thin command lines over ln; no logic of their own."""
