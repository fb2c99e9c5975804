"""Many copies of a network in one pass."""
