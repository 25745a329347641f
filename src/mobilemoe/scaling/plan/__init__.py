"""From a device's limits to an architecture: the space of shapes, its candidates, the choice and its reasons."""
