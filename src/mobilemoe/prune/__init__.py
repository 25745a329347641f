"""A smaller model for one domain: the experts that its texts use least are dropped, or merged into those that stay."""
