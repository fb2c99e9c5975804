"""Networks that are trained side by side."""

import torch


def end_alike(nets, optimizers, x, targets, losses):
    """Train each network for three steps by its own optimizer, and see that all parameters end the same."""
    for _ in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            losses(net(x), targets).mean().backward()
            optimizer.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
