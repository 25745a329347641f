"""Reads models of other runtimes back into checkpoint folders: GGUF files, and architectures of transformers."""
