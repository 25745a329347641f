"""Evaluation of the very files that ship."""
