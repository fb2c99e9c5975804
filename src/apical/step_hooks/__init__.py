"""What happens at the steps of optimizers: feedback that none holds is an error, feedback goes by its weights' options, absent
connections are set to zero, and a phase that never came is told.

Learners are kept here weakly, and hooks are registered when the first learner needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apical.step_hooks import everywhere, held, masks, missed

if TYPE_CHECKING:
    from apical.learner import Learner


def watch(learner: Learner) -> None:
    """Look after `learner` at every step of an optimizer that holds its parameters."""
    everywhere.learners.add(learner)
    if any(rule.trains for rule in learner.rules.values()):
        held.watch(learner)
    if learner.sparse:
        masks.watch(learner)
    # While a learner is unpickled, its phases may have nothing yet: the first step tells.
    phases = vars(learner.phases)
    if phases.get("learns", True) and not phases.get("adapted", 0):
        missed.watch(learner)
