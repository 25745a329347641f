"""Conversations made by rule, to practise what a small model gets wrong."""
