"""Speed and memory of models on this machine, and their shares of what the machine could do."""
