"""Text into batches: `sources` read, `stream` shuffles, `mixture` balances, `packing` fills rows, `loader` resumes."""
