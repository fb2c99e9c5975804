"""The page of a comparison, its figures, and a picture for a README."""
