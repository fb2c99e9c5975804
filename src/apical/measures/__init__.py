"""How feedback stands to the weights it replaces: pure functions of tensors, and measurements of a learner."""

from apical.measures.tensors import (
    Criteria,
    alignment_criteria,
    angle,
    angles,
    correlation,
    normalized_squared_error,
    pseudo_backprop,
    pseudo_inverse_angle,
    relative_error,
    sign_congruence,
    unit_angles,
)

__all__ = [
    "Criteria",
    "alignment_criteria",
    "angle",
    "angles",
    "correlation",
    "normalized_squared_error",
    "pseudo_backprop",
    "pseudo_inverse_angle",
    "relative_error",
    "sign_congruence",
    "unit_angles",
]
