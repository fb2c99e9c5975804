"""What goes along with the code: how to cite it, and that its types are for others to check against."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import apical
from apical.citations import CITATIONS

ROOT = Path(__file__).parents[2]
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_types_are_there_for_other_packages():
    assert (files(apical) / "py.typed").is_file()


def test_the_citation_is_of_this_version():
    assert CITED["version"] == apical.__version__.partition("+")[0]


@pytest.mark.parametrize("paper", CITED["references"], ids=lambda paper: paper["title"][:20])
def test_papers_are_cited_as_the_rules_cite_them(paper):
    names = ", ".join(author["family-names"] for author in paper["authors"])
    assert any(
        line.startswith(f"{names}. {paper['title']}.") and str(paper["year"]) in line for line in CITATIONS.values()
    )
