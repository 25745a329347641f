"""Measures the speed and memory of models on this machine, and which share of its limits they reach."""
