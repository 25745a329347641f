"""Trains grids of small models. A scaling law is fitted to the resulting table."""
