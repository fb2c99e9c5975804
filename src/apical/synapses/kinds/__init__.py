"""What a synapse of each kind computes: a layer of PyTorch, or of another library, a file."""
