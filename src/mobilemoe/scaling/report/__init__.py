"""Presents a law and its fit: pictures and an HTML page."""
