"""Grids of small trainings: the only part of `scaling` that trains, and so the only one that needs PyTorch."""
