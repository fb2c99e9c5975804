"""The public contract: names, words and keys stay as public.json lists them (see `public`)."""

import json

import pytest

from house.public import COLLECTED, LIST


@pytest.mark.parametrize("what", COLLECTED)
def test_what_others_rely_on_is_as_listed(what):
    listed = json.loads(LIST.read_text())[what]
    present = json.loads(json.dumps(COLLECTED[what]()))
    for place in listed:
        gone = flat(listed[place]) - flat(present.get(place, []))
        assert not gone, f"{place}: gone are {sorted(gone)}; users, runs or checkpoints rely on them"
    assert present == listed, "there is more than is listed: python tests/house/public.py lists it"


def flat(entries) -> set[str]:
    if isinstance(entries, dict):
        return {f"{key}: {one}" for key, some in entries.items() for one in some}
    return set(entries)
