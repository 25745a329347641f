"""Rounding to INT4 and INT8 as training sees it, and the export of what was learnt with it."""
