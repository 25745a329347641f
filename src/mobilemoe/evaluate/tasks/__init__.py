"""Builds the benchmarks as tasks of lm-evaluation-harness, and runs generated code in a sandbox."""
