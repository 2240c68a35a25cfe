"""What `python -m attnkernels.profile` is made of; `benchmarks` shares its measuring parts."""
