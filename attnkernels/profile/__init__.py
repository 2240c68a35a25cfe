"""`python -m attnkernels.profile`: time and memory of attention over the characters of a text."""
