"""How the feedback weights come to be what they are: one answer a file."""

from apical.plasticity.base import Plasticity
from apical.plasticity.fixed import Fixed
from apical.plasticity.gradient import Gradient
from apical.plasticity.hebbian import Hebbian
from apical.plasticity.initialization import INITS, draw
from apical.plasticity.mirror import Mirror
from apical.plasticity.perturbation import Perturbation
from apical.plasticity.signs import Signs
from apical.plasticity.transport import Transport

PLASTICITIES: dict[str, type[Plasticity]] = {
    kind.name: kind for kind in (Fixed, Transport, Signs, Hebbian, Mirror, Perturbation, Gradient)
}

__all__ = [
    "INITS",
    "PLASTICITIES",
    "Fixed",
    "Gradient",
    "Hebbian",
    "Mirror",
    "Perturbation",
    "Plasticity",
    "Signs",
    "Transport",
    "draw",
]
