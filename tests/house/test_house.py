"""The house's rules, read from the source: sizes, floors, private names, open members (see `source`)."""

import ast
import re
from inspect import get_annotations

import pytest

from apical.pathways import Pathway
from apical.plasticity import Plasticity
from house import source

REACHES: dict[tuple[str, str], str] = {}
"""(Module, private name of another one that it uses) -> why there is no better way; at most 5."""


def over(sizes: dict[str, int], most: int) -> str:
    return source.listed(f"over {most}", (f"{name}: {size}" for name, size in sizes.items() if size > most))


def files_of(top) -> dict[str, int]:
    return {file.relative_to(source.ROOT).as_posix(): source.lines(file) for file in sorted(top.rglob("*.py"))}


def test_no_folder_has_more_than_twelve_files():
    sizes = source.folders(source.PACKAGE)
    assert sizes.pop("apical") <= 13
    assert max(sizes.values()) <= 12, over(sizes, 12)


def test_no_folder_of_tests_has_more_than_twelve_files():
    sizes = source.folders(source.TESTS)
    assert max(sizes.values()) <= 12, over(sizes, 12)


def test_no_file_has_more_than_three_hundred_lines():
    sizes = files_of(source.PACKAGE)
    assert max(sizes.values()) <= 300, over(sizes, 300)


def test_no_file_of_tests_has_more_than_five_hundred_lines():
    sizes = files_of(source.TESTS)
    assert max(sizes.values()) <= 500, over(sizes, 500)


def test_every_room_has_its_floor():
    assert {source.room(module) for module in source.sources()} <= source.FLOOR.keys()


def test_imports_go_down():
    assert not source.climbing(), source.listed("imports that climb", source.climbing())


def test_the_library_never_imports_the_laboratory():
    assert not source.into_the_laboratory(), source.listed("into the laboratory", source.into_the_laboratory())


def test_no_folders_import_each_other_in_a_circle():
    assert not source.circles(source.between_folders())


def test_no_files_import_each_other_in_a_circle():
    assert not source.circles(source.between_files())


def test_private_names_stay_in_their_module():
    assert len(REACHES) <= 5
    places = [one for one in source.reaches() if (one.module, one.name) not in REACHES]
    assert not places, source.listed("private names of another module", places)
    assert REACHES.keys() <= {(one.module, one.name) for one in source.reaches()}, "a reach that is no more"


def test_few_types_are_ignored_and_docstrings_are_not_silenced():
    found = [
        f"{file.relative_to(source.PACKAGE)}:{number}: {line.strip()}"
        for file in source.sources().values()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"#\s*type: ignore", line)
    ]
    assert not [file for file in source.sources().values() if "noqa: D102" in file.read_text()]
    assert len(found) < 20, source.listed("type: ignore", found)


@pytest.mark.parametrize("kind", [Plasticity, Pathway])
def test_a_rule_has_at_most_five_members_to_define(kind):
    """Abstract or final: whatever a subclass may give or replace, fields of its own apart."""
    names = {name for name in (*vars(kind), *get_annotations(kind)) if not name.startswith("_")}
    open_ones = {name for name in names if not getattr(vars(kind).get(name), "__final__", False)}
    assert len(open_ones) <= 5, sorted(open_ones)


def test_a_rule_of_ones_own_needs_no_private_name():
    for page in sorted((source.ROOT / "docs" / "extending").glob("*.md")):
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            private = [
                node.attr
                for node in ast.walk(ast.parse(code))
                if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            ]
            assert not private, (page.name, private)
