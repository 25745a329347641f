"""What can be scored: our own engines, any file that llama.cpp reads, and both as lm-evaluation-harness sees them."""
