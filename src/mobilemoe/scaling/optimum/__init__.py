"""Where a law has its least loss: at a compute budget, and under a limit of bytes."""
