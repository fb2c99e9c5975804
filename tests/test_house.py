"""The house's rules, read from the source: sizes, floors, private names (see `house`)."""

import re

import pytest

import house

LATER = pytest.mark.xfail(strict=True, reason="held once the redesign is done")

REACHES: dict[tuple[str, str], str] = {}
"""(Module, private name of another one that it uses) -> why there is no better way; at most 5."""


def over(sizes: dict[str, int], most: int) -> str:
    return house.listed(f"over {most}", (f"{name}: {size}" for name, size in sizes.items() if size > most))


def files_of(top) -> dict[str, int]:
    return {file.relative_to(house.ROOT).as_posix(): house.lines(file) for file in sorted(top.rglob("*.py"))}


def test_no_folder_has_more_than_twelve_files():
    sizes = house.folders(house.PACKAGE)
    assert sizes.pop("apical") <= 13
    assert max(sizes.values()) <= 12, over(sizes, 12)


@LATER
def test_no_folder_of_tests_has_more_than_twelve_files():
    sizes = house.folders(house.TESTS)
    assert max(sizes.values()) <= 12, over(sizes, 12)


@LATER
def test_no_file_has_more_than_three_hundred_lines():
    sizes = files_of(house.PACKAGE)
    assert max(sizes.values()) <= 300, over(sizes, 300)


@LATER
def test_no_file_of_tests_has_more_than_five_hundred_lines():
    sizes = files_of(house.TESTS)
    assert max(sizes.values()) <= 500, over(sizes, 500)


def test_every_room_has_its_floor():
    assert {house.room(module) for module in house.sources()} <= house.FLOOR.keys()


@LATER
def test_imports_go_down():
    assert not house.climbing(), house.listed("imports that climb", house.climbing())


def test_the_library_never_imports_the_laboratory():
    assert not house.into_the_laboratory(), house.listed("into the laboratory", house.into_the_laboratory())


@LATER
def test_no_folders_import_each_other_in_a_circle():
    assert not house.circles(house.between_folders())


@LATER
def test_no_files_import_each_other_in_a_circle():
    assert not house.circles(house.between_files())


@LATER
def test_private_names_stay_in_their_module():
    assert len(REACHES) <= 5
    places = [one for one in house.reaches() if (one.module, one.name) not in REACHES]
    assert not places, house.listed("private names of another module", places)
    assert REACHES.keys() <= {(one.module, one.name) for one in house.reaches()}, "a reach that is no more"


@LATER
def test_few_types_are_ignored_and_docstrings_are_not_silenced():
    found = [
        f"{file.relative_to(house.PACKAGE)}:{number}: {line.strip()}"
        for file in house.sources().values()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"#\s*type: ignore", line)
    ]
    assert not [file for file in house.sources().values() if "noqa: D102" in file.read_text()]
    assert len(found) < 20, house.listed("type: ignore", found)
