"""What a training step does beyond gradients and the optimizer: parts, clipping, warm-up, averages, groups."""
