"""Commands about the folders of runs: what becomes of a trained network."""
