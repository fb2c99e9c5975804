"""Which connections of a synapse exist: its masks of zeros and ones, kept beside weights and feedback."""

from __future__ import annotations

MASKS = ("weight_mask", "feedback_mask")
"""Names of the buffers that say, in zeros and ones, which connections exist (see `Connectivity`)."""
