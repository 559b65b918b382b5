"""What a server is told to do: two that start at once on one port, an environment that is named twice."""

from __future__ import annotations

import asyncio
import socket

import pytest

from bundlectl.actions.listening import Graceful, bind, configured, listen
from bundlectl.actions.serve import followed
from bundlectl.model.errors import BackendUnavailable, UsageError


def two_on_one_port() -> tuple[socket.socket, socket.socket]:
    first = bind("127.0.0.1", 0)
    return first, bind("127.0.0.1", first.getsockname()[1])


def test_of_two_that_took_an_address_one_listens_and_the_other_is_told() -> None:
    first, second = two_on_one_port()
    with first, second:
        listen(first)
        with pytest.raises(BackendUnavailable) as told:
            listen(second)
        assert told.value.exit_code == 6
        assert told.value.what == f"The server cannot listen on 127.0.0.1:{first.getsockname()[1]}."
        assert "--port" in told.value.fix


def test_an_address_of_another_machine_is_told_from_a_port_that_is_taken() -> None:
    with pytest.raises(BackendUnavailable) as told:
        bind("192.0.2.1", 0)
    assert "--host" in told.value.fix


def test_a_server_that_comes_second_ends_with_that() -> None:
    first, second = two_on_one_port()
    with first, second:
        listen(first)
        with pytest.raises(BackendUnavailable):
            asyncio.run(Graceful(configured(None)).serve([second]))


def test_an_environment_is_followed_once() -> None:
    assert [str(ref) for ref in followed(["a:dev", "b:dev"])] == ["a:dev", "b:dev"]
    with pytest.raises(UsageError, match="a:dev is named twice"):
        followed(["a:dev", "b:dev", "a:dev"])
