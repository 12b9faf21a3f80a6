"""Tables of names, one file an area; data only."""
