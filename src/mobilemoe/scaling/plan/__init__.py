"""Chooses an architecture within the limits of a device: the space of shapes, the candidates, the choice and its
reasons.
"""
