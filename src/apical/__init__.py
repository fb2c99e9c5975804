"""Train any PyTorch network without weight transport."""

from apical.alignment import SynapseAlignment, alignment
from apical.attachment import attach, learner_of
from apical.audit import AuditReport, audit
from apical.connectivity import Connectivity
from apical.convolution import (
    Conv1dSynapse,
    Conv2dSynapse,
    Conv3dSynapse,
    ConvTranspose1dSynapse,
    ConvTranspose2dSynapse,
    ConvTranspose3dSynapse,
)
from apical.learner import Learner
from apical.local import LocalSGD
from apical.noise import NoisyActivations, NoisyInput
from apical.pathway import Direct, Indirect, LayerWise, NoPathway, Scalar
from apical.plasticity import Fixed, Gradient, Hebbian, Mirror, Perturbation, Signs, Transport
from apical.registry import register_synapse
from apical.replicas import Replicas
from apical.replicate import replicate
from apical.rules import Rule, rule, rules
from apical.synapse import LinearSynapse, Synapse

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
    "learner_of",
    "register_synapse",
    "replicate",
    "rule",
    "rules",
]

__version__ = "0.1.0"
