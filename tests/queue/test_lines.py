"""A queue's list is read line by line, and what can't be queued is refused by its place."""

from pathlib import Path

import pytest

from apical.queue.lines import Line, read

LIST = """
# Two seeds, one by one.
apical train --rule fa --seed 0
train --rule fa --seed 1   # a comment

reproduce lillicrap2016/fig2a --only "bp, deep" bp
"""
YAML = """
- train --rule fa --seed 0
- "train --rule fa --seed 1"
- 'reproduce lillicrap2016/fig2a --only "bp, deep" bp'
"""


@pytest.mark.parametrize("text", [LIST, YAML])
def test_a_list_holds_a_command_in_each_line(tmp_path, text):
    file = tmp_path / "list"
    file.write_text(text)
    words = [one.words for one in read(file)]
    assert words[:2] == [("train", "--rule", "fa", "--seed", "0"), ("train", "--rule", "fa", "--seed", "1")]
    assert words[2][2:] == ("--only", "bp, deep", "bp")
    assert [file.read_text().splitlines()[one.number - 1].strip() != "" for one in read(file)] == [True] * 3


def test_a_name_is_made_by_the_words_and_fits_every_file_system():
    one, moved, other = Line(1, ("train", "--rule", "fa")), Line(7, ("train", "--rule", "fa")), Line(1, ("train",))
    assert one.name == moved.name != other.name
    long = Line(1, ("train", "--data", "/a/b c/" + "ö" * 300))
    assert len(long.name.encode()) < 200
    assert "/" not in long.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train --rule fa\nfly --high", "line 2: 'fly' can't be queued; train, compare, speedrun and reproduce can"),
        ("train --folder x", "line 1: the queue itself gives --folder; leave it out"),
        ("train --resume=x", "line 1: the queue itself gives --resume"),
        ("train\n\napical train", "line 3: it is line 1 again"),
        ("train 'x", "line 1: No closing quotation"),
        ("# nothing", "holds no command"),
    ],
)
def test_what_cannot_be_queued_is_refused_by_its_place(tmp_path, text, message):
    file = tmp_path / "list"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(file)


def test_a_list_that_is_not_there_is_an_error_of_the_file(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        read(Path(tmp_path, "nowhere"))
