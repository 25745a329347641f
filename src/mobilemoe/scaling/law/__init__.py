"""Scaling laws: their forms, tables of runs, fits with intervals, comparisons of laws."""
