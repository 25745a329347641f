"""The benchmarks as tasks of lm-evaluation-harness: built here, and code scored in our sandbox."""
