"""Sockets that several processes have: bound once, nobody else's, with a queue that no one shortens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from mirror.config import Address
from mirror.sockets import bind, is_ours, meeting_point, new_crowd


async def test_a_bound_port_waits_for_whoever_accepts() -> None:
    """Clients connect before anybody accepts, and no program that we start has the socket by accident."""
    [listening] = await bind(Address("127.0.0.1", 0))
    with closing(listening), socket.create_connection(listening.getsockname()[:2], timeout=5):
        assert not listening.get_inheritable()
        assert not listening.getblocking()


async def test_a_port_that_cannot_be_had_is_named() -> None:
    """The error says which address, and why."""
    [listening] = await bind(Address("127.0.0.1", 0))
    with closing(listening):
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            await bind(Address("127.0.0.1", port))


def test_workers_meet_where_no_file_is() -> None:
    """Each slot has a socket of its own, in no directory; two mirrors on one machine do not meet."""
    crowd = new_crowd()
    first, name = meeting_point(0, crowd)
    second, other = meeting_point(1, crowd)
    with closing(first), closing(second), socket.socket(socket.AF_UNIX) as caller:
        assert name != other
        assert name.startswith("\0mirror-")
        caller.connect(name)
        first.accept()[0].close()
    assert new_crowd() != crowd


def test_our_own_user_is_known() -> None:
    """Both ends of a connection know that the other one runs as the same user."""
    listening, name = meeting_point(0, new_crowd())
    with closing(listening), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(name)
        accepted, _ = listening.accept()
        with closing(accepted):
            assert is_ours(caller)
            assert is_ours(accepted)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_stranger_is_known_for_one() -> None:
    """Whoever calls as another user is told apart by the kernel, whatever it says."""
    listening, name = meeting_point(0, new_crowd())
    listening.setblocking(True)
    listening.settimeout(10)
    call = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + sys.argv[1])"
    )
    with closing(listening):
        with subprocess.Popen([sys.executable, "-c", f"{call}; s.recv(1)", name[1:]]) as stranger:
            accepted, _ = listening.accept()
            with closing(accepted):
                assert not is_ours(accepted)
        assert stranger.returncode == 0
