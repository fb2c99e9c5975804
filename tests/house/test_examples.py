"""Examples in docstrings compute what they show."""

import doctest
import importlib

import pytest
import torch

from house import source

SHOWING = [module for module, file in source.sources().items() if ">>> " in file.read_text()]


@pytest.mark.parametrize("module", SHOWING)
def test_examples_in_docstrings_are_right(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert not found.failed, "printed above: what was expected, and what came"


def test_an_example_that_is_wrong_would_be_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1
