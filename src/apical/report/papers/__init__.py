"""The pages of the papers' results."""
