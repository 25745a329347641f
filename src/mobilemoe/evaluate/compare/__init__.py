"""Compares models reliably: paired scores, overlap with training text, and what compression changed."""
