"""Where results come from: commits of repositories, dates of runs, and what pages say of both."""

import json
import subprocess

import pytest

import apical
from apical.papers import Record, provenance
from apical.papers.reproduce import reproduce
from apical.report.papers import paper
from papers.walk import walk


@pytest.fixture
def package(tmp_path):
    """The folder of a package in a repository of one commit."""
    folder = tmp_path / "repository" / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    git = ["git", "-C", str(tmp_path / "repository"), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    return folder


def test_a_package_in_a_repository_has_its_commit_and_says_what_was_changed_since(package):
    clean = provenance.commit.__wrapped__(package)
    assert len(clean) == 12
    (package.parents[1] / "notes.txt").touch()
    assert provenance.commit.__wrapped__(package) == clean
    (package / "__init__.py").write_text("x = 1\n")
    assert provenance.commit.__wrapped__(package) == f"{clean}-dirty"


def test_a_package_that_is_in_no_repositorys_tree_has_no_commit(package, tmp_path, monkeypatch):
    installed = package.parents[1] / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert provenance.commit.__wrapped__(installed) is None
    assert provenance.commit.__wrapped__(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit.__wrapped__(package) is None


@pytest.mark.parametrize(("known", "version"), [(None, ""), ("1234567890ab-dirty", "+g1234567890ab.dirty")])
def test_a_result_says_when_and_by_which_commit_it_ran_apart_from_when_it_was_judged(
    known, version, tmp_path, monkeypatch
):
    monkeypatch.setattr(provenance, "commit", lambda: known)
    days = iter(f"2026-01-0{day}T10:00:00+00:00" for day in (1, 2, 5))
    monkeypatch.setattr(provenance, "now", lambda: next(days))
    outcome = reproduce(walk(), tmp_path / "run", scale=0.1)
    made = outcome["made"]
    assert (made["from"][:10], made["to"][:10], outcome["date"][:10]) == ("2026-01-01", "2026-01-02", "2026-01-05")
    assert made["commit"] == ([] if known is None else [known])
    assert made["apical"] == [apical.__version__ + version]
    assert outcome["versions"]["apical"] == apical.__version__ + version
    said = paper.origin(outcome)
    assert said.startswith(f"run 2026-01-01 to 2026-01-02 by apical {apical.__version__ + version}, torch ")
    assert said.endswith(", judged 2026-01-05")


def test_records_from_before_this_was_kept_are_read_and_said_to_be_unknown(tmp_path):
    outcome = reproduce(walk(), tmp_path / "run", scale=0.1, seeds=1)
    plain = json.loads((tmp_path / "run" / "records" / "slow-0.json").read_text())
    before = {key: value for key, value in plain.items() if key != "made"}
    assert provenance.told([*Record.of(plain).made, *Record.of(before).made]) is None
    assert "was not kept" in paper.origin({**outcome, "made": None})
