"""How a teaching signal reaches a synapse: one answer a file.

The signal enters at the synapse's input, the only place where pathways differ. Layer-wise, it is delta B of the synapse itself.
For the direct pathway every synapse takes ``x.detach()`` and leaves ``x`` as a tap; the network's output then passes through
one broadcast node (see `taps`) that tells every tap its error.
"""

from apical.pathways.base import Pathway
from apical.pathways.direct import Direct, FromOutput
from apical.pathways.indirect import Indirect
from apical.pathways.layer_wise import LayerWise
from apical.pathways.none import NoPathway
from apical.pathways.scalar import Scalar

PATHWAYS: dict[str, type[Pathway]] = {kind.name: kind for kind in (LayerWise, Direct, Indirect, Scalar, NoPathway)}

__all__ = ["PATHWAYS", "Direct", "FromOutput", "Indirect", "LayerWise", "NoPathway", "Pathway", "Scalar"]
