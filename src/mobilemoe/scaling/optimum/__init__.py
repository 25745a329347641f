"""The lowest loss of a law at a compute budget, with or without a memory limit."""
