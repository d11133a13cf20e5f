# SPDX-License-Identifier: Apache-2.0
"""An address belongs to one server from ``bind`` on, and nothing of it stays after ``release``."""

import socket
from pathlib import Path

import pytest

from linnet.errors import ConfigError
from linnet.serve import ServeConfig, bind, release


def test_of_two_servers_started_together_one_gets_the_port() -> None:
    config = ServeConfig(names=("m",), port=0)
    listener = bind(config)
    try:
        with pytest.raises(ConfigError, match="in use"):
            bind(ServeConfig(names=("m",), port=listener.getsockname()[1]))
    finally:
        release(listener, config)


def test_of_two_servers_started_together_one_gets_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    config = ServeConfig(names=("m",), uds=str(path))
    listener = bind(config)
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="another server uses it"):
        bind(config)
    release(listener, config)
    assert not path.exists()
    release(bind(config), config)


def test_a_socket_file_that_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    config = ServeConfig(names=("m",), uds=str(path))
    release(bind(config), config)
    assert not path.exists()
