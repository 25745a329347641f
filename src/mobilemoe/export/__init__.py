"""Writes models for other runtimes: GGUF for llama.cpp, and an architecture of transformers."""
