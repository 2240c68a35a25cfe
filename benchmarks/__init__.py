"""Time and memory of additive attention against its peers. Nothing here is ever asserted."""
