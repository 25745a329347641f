"""Runs code that a model wrote, in isolation."""
