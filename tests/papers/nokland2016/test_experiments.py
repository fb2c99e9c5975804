"""Lengths of the paper's experiments."""

import pytest

from apical.papers.nokland2016.fig2_right import FIG2_RIGHT
from apical.papers.nokland2016.text_ifa import TEXT_IFA
from apical.papers.nokland2016.theorem1 import THEOREM1


@pytest.mark.parametrize("experiment", [FIG2_RIGHT, TEXT_IFA, THEOREM1], ids=lambda one: one.name)
def test_lengths_are_epochs_of_the_data_given(digits, experiment):
    epochs = {"nokland2016/theorem1": 5}.get(experiment.name, 300)
    assert experiment.steps(digits) == {"steps": epochs * 23}
