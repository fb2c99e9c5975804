"""Train any PyTorch network without weight transport."""

import importlib
from typing import TYPE_CHECKING, Any

from apical.attaching.attach import attach, learner_of
from apical.attaching.connectivity import Connectivity
from apical.cuda_graphs.step import captured
from apical.learner import Learner
from apical.measures.alignment import SynapseAlignment, alignment
from apical.measures.audit import AuditReport, audit
from apical.networks.noisy import NoisyActivations, NoisyInput
from apical.optim.local_sgd import LocalSGD
from apical.pathways.direct import Direct
from apical.pathways.indirect import Indirect
from apical.pathways.layer_wise import LayerWise
from apical.pathways.none import NoPathway
from apical.pathways.scalar import Scalar
from apical.plasticity import Fixed, Gradient, Hebbian, Mirror, Perturbation, Signs, Transport
from apical.replicas.replicas import Replicas
from apical.replicas.replicate import replicate
from apical.rules import Rule, rule, rules
from apical.synapses.kinds.convolution import (
    Conv1dSynapse,
    Conv2dSynapse,
    Conv3dSynapse,
    ConvTranspose1dSynapse,
    ConvTranspose2dSynapse,
    ConvTranspose3dSynapse,
)
from apical.synapses.kinds.linear import LinearSynapse
from apical.synapses.kinds.locally_connected import LocallyConnected2dSynapse
from apical.synapses.registry import register_synapse
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.training import load

__all__ = [
    "AuditReport",
    "Connectivity",
    "Conv1dSynapse",
    "Conv2dSynapse",
    "Conv3dSynapse",
    "ConvTranspose1dSynapse",
    "ConvTranspose2dSynapse",
    "ConvTranspose3dSynapse",
    "Direct",
    "Fixed",
    "Gradient",
    "Hebbian",
    "Indirect",
    "LayerWise",
    "Learner",
    "LinearSynapse",
    "LocalSGD",
    "LocallyConnected2dSynapse",
    "Mirror",
    "NoPathway",
    "NoisyActivations",
    "NoisyInput",
    "Perturbation",
    "Replicas",
    "Rule",
    "Scalar",
    "Signs",
    "Synapse",
    "SynapseAlignment",
    "Transport",
    "alignment",
    "attach",
    "audit",
    "captured",
    "learner_of",
    "load",
    "register_synapse",
    "replicate",
    "rule",
    "rules",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The training engine is no part of the library, and takes a while to import.
    if name == "load":
        return importlib.import_module("apical.training").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
