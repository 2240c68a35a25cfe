"""The systems that attention came from, one file each, to be read beside its paper."""
