"""Train any PyTorch network without weight transport."""

from apical.learner import Learner, attach, learner_of
from apical.pathway import Direct, Indirect, LayerWise, NoPathway
from apical.plasticity import Fixed, Hebbian, Signs, Transport
from apical.registry import register_synapse
from apical.rules import Rule, rule, rules
from apical.synapse import (
    Conv1dSynapse,
    Conv2dSynapse,
    Conv3dSynapse,
    ConvTranspose1dSynapse,
    ConvTranspose2dSynapse,
    ConvTranspose3dSynapse,
    LinearSynapse,
    Synapse,
)

__version__ = "0.1.0"
