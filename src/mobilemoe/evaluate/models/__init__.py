"""The models that can be scored: our engines and GGUF files, and how lm-evaluation-harness sees them."""
