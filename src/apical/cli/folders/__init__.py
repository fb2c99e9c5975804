"""Commands about the folders of runs: their report, what becomes of a trained network, and lists of them."""
