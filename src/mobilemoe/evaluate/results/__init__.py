"""The files that evaluation reads and writes: rows of JSONL, results, examples."""
