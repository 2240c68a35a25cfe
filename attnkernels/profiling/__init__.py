"""What `python -m attnkernels.profile` is made of; the benchmark suite shares its measuring parts."""
