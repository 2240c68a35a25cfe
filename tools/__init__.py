"""Tools for those who change attnkernels; none of them is installed."""
