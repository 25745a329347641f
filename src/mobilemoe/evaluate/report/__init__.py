"""Scores as people read them: fronts, pictures, a page and the model's card."""
