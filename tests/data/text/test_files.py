"""Which files a text is made of, and which are held out."""

import sysconfig
from pathlib import Path

import pytest

from apical.data import DataError, load
from apical.data.options import DataOptions
from apical.data.text.files import parts_of
from apical.training import TrainConfig
from data.text.books import written


def texts(content: bytes) -> set[bytes]:
    """The files that a part is made of."""
    assert content.endswith(b"\0")
    return set(content[:-1].split(b"\0"))


def test_whole_files_are_held_out_by_their_names(tmp_path):
    folder = written(tmp_path / "books", 60)
    (folder / "below").mkdir()
    (folder / "00.txt").rename(folder / "below" / "00.txt")
    (folder / ".hidden").write_bytes(b"hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\1")
    (folder / "empty").touch()
    found = parts_of(f"text:{folder}")
    parts = {role: texts(content) for role, content in found.content.items()}
    assert {role: len(own) for role, own in parts.items()} == {"test": 3, "validation": 3, "train": 54}
    assert set().union(*parts.values()) == {path.read_bytes() for path in folder.rglob("*.txt")}
    # In the order of their names, whatever the file system's is.
    kept = [path for path in sorted(folder.rglob("*.txt")) if path.read_bytes() in parts["train"]]
    assert found.content["train"] == b"".join(path.read_bytes() + b"\0" for path in kept)
    assert found.called["train"] == "54 of 60 files"
    # The files' content and place on the disk decide nothing.
    assert parts_of(f"text:{folder}") == found
    for path in folder.rglob("*.txt"):
        path.write_bytes(path.name.encode())
    moved = folder.rename(tmp_path / "elsewhere")
    again = {role: len(texts(one)) for role, one in parts_of(f"text:{moved}").content.items()}
    assert again == {"test": 3, "validation": 3, "train": 54}
    names = {path.name.encode() for path in kept}
    assert texts(parts_of(f"text:{moved}").content["train"]) == names


def test_the_seed_chooses_what_is_chosen_by_and_never_what_is_tested_on(tmp_path):
    name = f"text:{written(tmp_path / 'books', 40)}"
    default, other = parts_of(name), parts_of(name, share=0.2, seed=1)
    assert default.content["test"] == other.content["test"]
    assert len(texts(other.content["validation"])) == round(0.2 * 38)
    assert default.content["validation"] != parts_of(name, seed=1).content["validation"]


def test_a_single_file_is_cut():
    path = Path(__file__)
    whole, found = path.read_bytes(), parts_of(f"text:{path}")
    assert b"".join(found.content[role] for role in ("train", "validation", "test")) == whole
    assert len(found.content["test"]) == round(0.05 * len(whole))


def test_the_standard_library_is_its_sources_without_tests_and_tables():
    found, again = parts_of("text"), parts_of("text")
    assert found == again
    parts = {role: texts(content) for role, content in found.content.items()}
    root = Path(sysconfig.get_path("stdlib"))
    for module in ("json/decoder.py", "asyncio/base_events.py", "tokenize.py"):
        assert sum((root / module).read_bytes() in own for own in parts.values()) == 1
    for module in ("encodings/cp037.py", "pydoc_data/topics.py"):
        assert not any((root / module).read_bytes() in own for own in parts.values())
    sizes = {role: sum(map(len, own)) for role, own in parts.items()}
    assert sizes["train"] > 5_000_000
    assert min(sizes.values()) > 50_000
    assert not parts["train"] & parts["test"]


def folder_of(tmp_path: Path, *contents: bytes) -> str:
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    return f"text:{tmp_path}"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([], r"data 'text:.*has 0 text files \(of 0 that are not hidden; .*one file by its own path"),
        ([b"\0binary", b"", b"text"], r"has 1 text files \(of 3 that are not hidden"),
        (
            [b"a" * 200, b"b" * 200, b"c" * 100],
            r"its \w+ part, 1 of 3 files, has 101 bytes, .*smaller window \(--window\)",
        ),
    ],
)
def test_folders_that_make_no_text(tmp_path, contents, message):
    with pytest.raises(DataError, match=message):
        load(folder_of(tmp_path, *contents))


@pytest.mark.parametrize("size", [0, 1, 128, 1000])
def test_files_that_are_too_short(tmp_path, size):
    path = tmp_path / "short"
    path.write_bytes(b"x" * size)
    with pytest.raises(
        DataError, match=r"data 'text:.*short'.* too few for a window of 128 and the byte after it; give more"
    ):
        load(f"text:{path}")


@pytest.mark.parametrize("name", ["text:", "text:nowhere/at/all"])
def test_texts_that_are_not_there(name):
    with pytest.raises(DataError, match=rf"data '{name}': there is no file or folder .*give 'text'.* or 'text:PATH'"):
        load(name)


def test_a_file_that_can_not_be_read(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    folder = written(tmp_path / "books", 1)
    (folder / "00.txt").rename(folder / "03.txt")
    monkeypatch.setattr(Path, "read_bytes", denied)  # By its mode it would be read by root all the same.
    with pytest.raises(DataError, match=r"03\.txt' can't be read: .*take it out"):
        load(f"text:{folder}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "flip"}, "augment is for images, and data 'text' is a text; leave it out"),
        ({"normalize": "own", "stream": False}, "normalize is for images"),
        ({"stream": True}, "stream is for images"),
        ({"test_split": "val"}, r"leave out test_split, or give a fraction: validation=0\.05"),
        ({"validation": "val"}, "leave out validation_split"),
        ({"validation": 5000}, "validation=5000: of a text a share is held out, in whole files"),
        ({"validation": 0.999}, r"validation=0\.999 leaves none of \d+ files to train on"),
    ],
)
def test_options_that_a_text_has_not(options, message):
    with pytest.raises(DataError, match=message):
        DataOptions(**options).applied("text")


def test_a_window_is_for_text_alone():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        TrainConfig(window=0)
    with pytest.raises(DataError, match="window must be at least 1, got -3"):
        load("text", window=-3)
    with pytest.raises(
        DataError, match=r"window=64 is for text \(data='text'\), and the data are 'digits'; leave it out"
    ):
        DataOptions(window=64).applied("digits")
