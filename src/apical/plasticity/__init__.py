"""How the feedback weights come to be what they are: one answer a file."""

from apical.plasticity.base import Computed, Phased, Plasticity, Stored, Trained
from apical.plasticity.fixed import Fixed
from apical.plasticity.gradient import Gradient
from apical.plasticity.hebbian import Hebbian
from apical.plasticity.initialization import INITS, draw
from apical.plasticity.mirror import Mirror
from apical.plasticity.none import NoPlasticity
from apical.plasticity.perturbation import Perturbation
from apical.plasticity.signs import Signs
from apical.plasticity.transport import Transport
from apical.synapses.storage import keep, kept

PLASTICITIES: dict[str, type[Plasticity]] = {
    kind.name: kind for kind in (Fixed, Transport, Signs, Hebbian, Mirror, Perturbation, Gradient)
}

__all__ = [
    "INITS",
    "PLASTICITIES",
    "Computed",
    "Fixed",
    "Gradient",
    "Hebbian",
    "Mirror",
    "NoPlasticity",
    "Perturbation",
    "Phased",
    "Plasticity",
    "Signs",
    "Stored",
    "Trained",
    "Transport",
    "draw",
    "keep",
    "kept",
]
