"""What evaluation reads and writes: rows of JSONL, results.json, examples."""
