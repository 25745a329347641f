"""The report on scores: Pareto fronts, pictures, a page and the model card."""
