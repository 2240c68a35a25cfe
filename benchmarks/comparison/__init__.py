"""Two commits, built and timed side by side: the parts of `python -m benchmarks.compare`."""
