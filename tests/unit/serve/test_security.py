# SPDX-License-Identifier: Apache-2.0
"""Keys, salts, hosts and bind addresses."""

import pytest

from linnet.errors import ConfigError
from linnet.serve.errors import ApiError
from linnet.serve.security import Hosts, Keys, check_bind, is_loopback, narrower_salt
from linnet.settings import ServeConfig


def test_salts_differ_by_key_and_process_and_never_show_the_key() -> None:
    keys, again = Keys(["first-key", "second-key"]), Keys(["first-key", "second-key"])
    first, second = keys.check([b"Bearer first-key"]), keys.check([b"Bearer second-key"])
    assert len({first, second, again.check([b"Bearer first-key"])}) == 3
    assert first == keys.check([b"bearer  first-key"])
    assert narrower_salt(first, None) == first
    assert len({first, narrower_salt(first, "a"), narrower_salt(first, "b"), narrower_salt(second, "a")}) == 4


@pytest.mark.parametrize("fields", [[], [b""], [b"Bearer"], [b"first-key"], [b"Bearer first-key", b"Bearer first-key"]])
def test_anything_but_one_right_key_is_401(fields: list[bytes]) -> None:
    with pytest.raises(ApiError) as caught:
        Keys(["first-key"]).check(fields)
    assert caught.value.status == 401


def test_without_keys_everybody_shares_one_salt() -> None:
    keys = Keys([])
    assert not keys.required
    assert keys.check([]) == keys.check([b"Bearer whatever"])


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:80", b"[::1]:1", b"LocalHost.", b"named.example:9"])
def test_hosts_on_the_list(host: bytes) -> None:
    Hosts("127.0.0.1", ["named.example"]).check([host], [b"http://" + host])


@pytest.mark.parametrize(
    "host", [b"", b"localhost:", b"a b", b"localhost/x", b"localhost?x", b"x@localhost", b"10.0.0.1", b"[::1", b"\xff"]
)
def test_hosts_off_the_list(host: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        Hosts("127.0.0.1").check([host], [])
    assert caught.value.status == 403


def test_a_public_server_answers_to_addresses_but_not_to_foreign_names() -> None:
    hosts = Hosts("0.0.0.0", ["llm.example"])
    for host in (b"10.0.0.1:8000", b"[2001:db8::1]", b"llm.example", b"localhost"):
        hosts.check([host], [])
    for host in (b"evil.example", b"10.0.0.1.evil.example"):
        with pytest.raises(ApiError):
            hosts.check([host], [])


def test_two_hosts_or_none_are_refused() -> None:
    for hosts in ([], [b"localhost", b"localhost"]):
        with pytest.raises(ApiError):
            Hosts("127.0.0.1").check(hosts, [])


def test_loopback_is_what_it_says() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
    check_bind("0.0.0.0", ["a-long-key"])
    with pytest.raises(ConfigError):
        check_bind("0.0.0.0", [])


@pytest.mark.parametrize("keys", [("short",), ("has a space",), ("tab\tinside",), ("ключ-ключ",)])
def test_weak_or_odd_keys_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        ServeConfig(names=("m",), keys=keys)
