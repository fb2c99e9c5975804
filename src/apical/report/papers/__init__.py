"""The pages and figures of the papers' results."""
