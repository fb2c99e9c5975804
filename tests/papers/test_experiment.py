"""What holds for every experiment, and experiments by name."""

import pytest

from apical.papers import experiments, find
from apical.papers.experiment import IMAGES
from apical.papers.lillicrap2016 import EXPERIMENTS


def test_every_description_says_what_it_is():
    for name, one in experiments().items():
        assert name == one.name
        assert one.title
        assert one.source
        assert one.length
        assert one.minutes > 0
        assert one.seeds >= 1
        assert one.conditions
        assert len(set(one.conditions)) == len(one.conditions)
        assert one.data in (None, "text", *IMAGES)


@pytest.mark.parametrize("one", EXPERIMENTS, ids=lambda one: one.name)
def test_an_outcome_copes_with_what_is_missing(one):
    one.outcome({})


def test_an_experiment_on_images_needs_them():
    with pytest.raises(ValueError, match="needs images, got none"):
        find("lillicrap2016/fig3a").steps(None)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'lillicrap2016/fig2a'"):
        find("lillicrap2016/fig2aa")
    with pytest.raises(ValueError, match="name one of lillicrap2016/"):
        find("lillicrap2016")
    with pytest.raises(ValueError, match=r"name one of lillicrap2016/fig2a, lansdell2020/fig2a$"):
        find("fig2a")
