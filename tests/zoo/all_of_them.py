"""The whole zoo."""

from zoo import of_snntorch, of_timm, of_torch, of_torchvision, of_transformers
from zoo.networks import Network

NETWORKS: list[Network] = [
    *of_torch.NETWORKS,
    *of_torchvision.NETWORKS,
    *of_timm.NETWORKS,
    *of_transformers.NETWORKS,
    *of_snntorch.NETWORKS,
]
