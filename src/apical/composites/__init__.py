"""Layers of PyTorch that hold several weights and compute with them in one piece, taken apart into linear maps."""

from apical.composites import attention as attention
from apical.composites import bilinear as bilinear
from apical.composites import recurrent as recurrent
from apical.composites.unfused import Unfused as Unfused
from apical.composites.unfused import lent as lent
from apical.composites.unfused import unfuse as unfuse
