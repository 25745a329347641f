"""Models of ours as other runtimes take them: GGUF for llama.cpp, and a stock transformers architecture."""
