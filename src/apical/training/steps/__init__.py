"""What a training step does beyond gradients and the optimizer: parts, clipping, rates, averages, groups."""
