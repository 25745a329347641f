"""Fake quantisation to INT4 and INT8 for training, and the export of models trained with it."""
