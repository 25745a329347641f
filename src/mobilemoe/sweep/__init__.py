"""Grids of small trainings, whose tables a law is fitted to."""
