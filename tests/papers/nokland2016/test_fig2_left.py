"""A first layer that is let go, and how that is judged."""

import numpy as np
import pytest
import torch

from apical.papers import Curve, Record, Task
from apical.papers.nokland2016.fig2_left import FIG2_LEFT


def test_the_frozen_phase_is_the_same_for_both_rules_and_the_first_layer_learns_only_after_it(digits, tmp_path):
    lengths = {"frozen": 30, "unfrozen": 30}
    records, layers = {}, {}
    for rule in FIG2_LEFT.conditions:
        task = Task(rule, (0, 1), 1.0, lengths, tmp_path / rule, digits)
        layers[rule] = FIG2_LEFT.networks(task).model.get_submodule("0").weight.detach().clone()
        records[rule] = FIG2_LEFT.run(task)
        kept = {
            name: task.restore(name)["parts"]["training"]["model"]["model.0.weight"] for name in ("frozen", "unfrozen")
        }
        assert torch.equal(kept["frozen"], layers[rule])
        assert not torch.equal(kept["unfrozen"], layers[rule])
    bp, dfa = (records[rule].curves["test error"] for rule in ("bp", "dfa"))
    count = sum(x * 23 <= 30 for x in bp.x)
    np.testing.assert_allclose(bp.values[:, :count], dfa.values[:, :count], atol=1e-9)
    assert not np.allclose(bp.values, dfa.values)
    assert FIG2_LEFT.outcome(records).panels


@pytest.mark.parametrize(
    ("first", "half", "late", "rises"), [(9.0, 0.05, 0.05, True), (4.0, 1.0, 0.05, False), (9.0, 0.2, 0.2, True)]
)
def test_what_figure_2_left_shows_is_judged_by_means_over_epochs(first, half, late, rises):
    x = np.arange(0.25, 25.1, 0.25)
    errors = np.select([x <= 5, x <= 6, x <= 10, x <= 15], [5.0, first, 1.0, half], late)
    # One point that does not belong decides nothing.
    errors[-1], errors[22] = 0.1 - late / 5, 7.0 - first / 3
    made = Record(
        curves={"train error": Curve(x.tolist(), [errors.tolist()])},
        numbers={"frozen": [5.0], "test error": [3.0]},
        arrays={"unfrozen at": 5.0},
    )
    shown = FIG2_LEFT.outcome({"dfa": made})
    # The paper's time is half of what is run.
    assert [claim.holds for claim in shown.claims] == [half < 0.1, rises, True]
    assert [(row.label, row.agrees) for row in shown.rows if row.published] == [
        ("dfa: train error, first layer frozen", True),
        ("dfa: train error, 10 epochs after", half < 0.1),
        ("dfa: train error at the end", late < 0.1),
    ]
    # A rise that backpropagation has as well is none of DFA's.
    claims = FIG2_LEFT.outcome({"bp": made, "dfa": made}).claims
    assert [claim.holds for claim in claims if "first rises" in claim.text] == [False]
