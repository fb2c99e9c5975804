"""A process whose peer has ended says so, and how to go on; other errors stay what they are."""

import pytest
import torch.distributed as dist

from apical import distributed
from apical.cli import terminal
from apical.distributed import PeerLostError, peers_told

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234\nmore"


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)


@pytest.mark.parametrize("error", [RuntimeError(GLOO), RuntimeError("Broken pipe"), dist.DistNetworkError("no route")])
def test_a_lost_peer_is_explained(two, error):
    with (
        pytest.raises(PeerLostError, match=r"^process 1 of 2 stops, as another one has ended .*--resume") as caught,
        peers_told(),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes (2, 3) and (4, 5)"), ValueError("by peer"), KeyboardInterrupt()]
)
def test_another_error_stays_what_it_is(two, error):
    with pytest.raises(type(error)) as caught, peers_told():
        raise error
    assert caught.value is error


def test_alone_there_are_no_peers():
    error = RuntimeError(GLOO)
    with pytest.raises(RuntimeError) as caught, peers_told():
        raise error
    assert caught.value is error


def test_the_command_ends_with_status_1_and_a_line(two, capsys):
    with pytest.raises(SystemExit) as end, terminal.plain_errors(), peers_told():
        raise RuntimeError(GLOO)
    assert end.value.code == 1
    assert "another one has ended" in capsys.readouterr().err
