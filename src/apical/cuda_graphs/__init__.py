"""A whole training step as one CUDA graph: when it can be one, what the graph was made for, and its replays."""
