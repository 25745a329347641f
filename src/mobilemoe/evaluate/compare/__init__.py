"""Differences that can be trusted: paired scores, overlap with training text, and what compression changed."""
