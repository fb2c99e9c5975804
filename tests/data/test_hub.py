"""The hub, played by a server on this machine."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import huggingface_hub.constants
import pytest

from apical import data
from apical.data import DataError
from data.pictures import (
    assert_holds,
    entries,
    in_memory_splits,
    pictures,
    refused,
)


class Hub:
    """Knows one data set, `somebody/pictures`, at a revision that can be changed."""

    def __init__(self, monkeypatch, made):
        self.made, self.sha, self.loaded, self.status = made, "a" * 40, [], 200
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.path.startswith("/api/datasets/somebody/pictures")
                status = hub.status if known else 404
                body = json.dumps({"id": "somebody/pictures", "sha": hub.sha, "tags": [], "siblings": []}).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{self.server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def load(self, name, *, revision):
        self.loaded.append((name, revision))
        return in_memory_splits(self.made)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch):
    made = Hub(monkeypatch, {"train": (pictures(3), [0, 1, 2]), "test": (pictures(2), [1, 0])})
    yield made
    made.close()


PICTURES = "somebody/pictures"


def test_a_data_set_of_the_hub_is_kept_by_its_revision(hub, cache):
    assert_holds(data.load(PICTURES, cache=cache).train, *hub.made["train"])
    assert hub.loaded == [(PICTURES, "a" * 40)]
    assert data.load(PICTURES, cache=cache).name == PICTURES
    assert len(hub.loaded) == 1
    hub.sha, hub.made["test"] = "b" * 40, (pictures(2, seed=7), [2, 2])
    assert_holds(data.load(PICTURES, cache=cache).test, *hub.made["test"])
    assert hub.loaded[1:] == [(PICTURES, "b" * 40)]
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("how", ["closed", "failing"])
def test_without_the_hub_what_was_decoded_serves_with_a_warning(hub, cache, how, monkeypatch):
    data.load(PICTURES, cache=cache)
    hub.status = 503
    if how == "closed":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"can't be reached.*somebody/pictures may have changed"):
        assert_holds(data.load(PICTURES, cache=cache).train, *hub.made["train"])
    (entry,) = entries(cache)
    (entry / "test-images.u8").write_bytes(b"\0" * 70)
    with pytest.raises(DataError, match=r"damaged.*can't be reached"):
        data.load(PICTURES, cache=cache)
    assert len(hub.loaded) == 1


@pytest.mark.parametrize("name", [PICTURES, "pictures"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(hub, cache, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    refused(repr(name), "can't be reached", "local folder", "HF_HUB_OFFLINE=1", name=name, cache=cache)
    assert time.monotonic() - start < 5
    assert hub.loaded == []


def test_in_offline_mode_what_datasets_has_kept_serves(hub, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for _ in range(2):  # decoded; then kept, with no warning
        assert_holds(data.load(PICTURES, cache=cache).train, *hub.made["train"])
    assert hub.loaded == [(PICTURES, None)]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    data.load(PICTURES, cache=cache)
    assert hub.loaded[1:] == [(PICTURES, "a" * 40)]  # of a revision nobody knew: decoded again


def test_in_offline_mode_without_a_copy_the_way_out_is_said(hub, cache, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refused(PICTURES, "can't be reached", "local folder", name=PICTURES, cache=cache)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_name_that_the_hub_does_not_know_is_said(hub, cache, name):
    refused(repr(name), "no such folder", "no data set of that name", "spelling", name=name, cache=cache)


def test_a_data_set_that_the_hub_cannot_deliver_is_said(hub, cache, monkeypatch):
    def failing(*_, **__):
        raise ValueError("Config name is missing")

    monkeypatch.setattr(datasets, "load_dataset", failing)
    refused(PICTURES, "Config name is missing", "folder", name=PICTURES, cache=cache)
