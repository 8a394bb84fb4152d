"""The rules of xenstored that are about who: visibility, limits, domains that end, the administrator."""

import pytest

from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored import quota
from unit.dom0.test_xenstore_requests import Store, refused


@pytest.fixture
def store() -> Store:
    return Store()


# -- paths


@pytest.mark.parametrize("path", ["", "//", "/a/", "/a//b", "/a.b", "/a b", "/a:b", "/a+b", "@other", "/" + "a" * 3072])
def test_paths_that_no_node_has_are_refused(store: Store, path: str) -> None:
    for client in (store.dom0, store.guest(1)):
        with refused("EINVAL"):
            store.read(client, path)


def test_relative_paths_on_the_socket_begin_at_the_home_of_domain_0(store: Store) -> None:
    """As with both of Xen's daemons."""
    store.write(store.dom0, "r/x", "1")
    assert store.read(store.dom0, "/local/domain/0/r/x") == "1"
    store.ask(store.dom0, XsType.WATCH, "r", "t")
    store.events(store.dom0)
    store.write(store.dom0, "/local/domain/0/r/x", "2")
    assert store.events(store.dom0) == [("r/x", "t")]
    assert store.ask(store.dom0, XsType.UNWATCH, "/local/domain/0/r", "t") == b"OK\0"


def test_longest_paths(store: Store) -> None:
    store.write(store.dom0, "/" + "a" * 3071, "1")
    guest = store.guest(1)
    store.write(guest, "a" * 2048, "1")
    with refused("EINVAL"):
        store.write(guest, "a" * 2049, "1")


def test_quota_of_path_lengths_is_for_what_guests_make(store: Store) -> None:
    guest = store.guest(1)
    store.write(store.dom0, "/local/domain/1/" + "b" * 2000, "1")
    assert store.ask(store.dom0, XsType.CONTROL, "quota", "set", "path-max", "100") == b"OK\0"
    store.write(guest, "b" * 2000, "2")
    with refused("EINVAL"):
        store.write(guest, "c" * 101, "1")
    store.write(guest, "c" * 100, "1")


# -- who sees what


def test_guests_see_nothing_that_nobody_has_shown_them(store: Store) -> None:
    guest = store.guest(1)
    store.write(store.dom0, "/vm/uuid/name", "other")
    for path in ("/", "/vm", "/vm/uuid/name", "/tool", "/local/domain", "/local/domain/0", "/none"):
        for kind in (XsType.READ, XsType.DIRECTORY, XsType.GET_PERMS):
            with refused("EACCES"):
                store.ask(guest, kind, path)


# -- watches


def test_reserved_values_at_the_end_mean_nothing(store: Store) -> None:
    """Source: docs/misc/xenstore.txt of Xen, the question marks behind the arguments."""
    for kind, arguments in (
        (XsType.WATCH, b"/a\0one\0"),
        (XsType.UNWATCH, b"/a\0one\0"),
        (XsType.WATCH, b"/a\0two\0\0"),
        (XsType.UNWATCH, b"/a\0two\0\0"),
        (XsType.INTRODUCE, b"5\x00300\x002\0"),
        (XsType.SET_PERMS, b"/\0n0\0"),
    ):
        assert store.ask(store.dom0, kind, raw=arguments + b"?") == b"OK\0"
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.READ, raw=b"/\0?")


def test_any_special_watch_may_be_set_but_only_events_fire_it(store: Store) -> None:
    for name in ("@whatever", "@releaseDomain/7"):
        store.ask(store.dom0, XsType.WATCH, name, "t")
        assert store.events(store.dom0) == [(name, "t")]
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.WATCH, "@a b", "t")


def test_special_watch_tells_the_domain_to_who_asks_for_it(store: Store) -> None:
    for path, token, depth in (("", "d", "1"), ("/5", "five", "0"), ("", "p", "0")):
        store.ask(store.dom0, XsType.WATCH, f"@releaseDomain{path}", token, depth)
    store.ask(store.dom0, XsType.INTRODUCE, "5", "300", "2")
    store.ask(store.dom0, XsType.INTRODUCE, "6", "301", "2")
    store.events(store.dom0)
    store.ask(store.dom0, XsType.RELEASE, "6")
    assert sorted(store.events(store.dom0)) == [("@releaseDomain", "p"), ("@releaseDomain/6", "d")]
    store.ask(store.dom0, XsType.RELEASE, "5")
    assert sorted(store.events(store.dom0)) == [
        ("@releaseDomain", "p"),
        ("@releaseDomain/5", "d"),
        ("@releaseDomain/5", "five"),
    ]
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.WATCH, "@releaseDomain", "x", "2")


def test_events_longer_than_a_message_are_not_sent(store: Store) -> None:
    path, token = "/" + "a" * 3071, "t" * 1024
    store.ask(store.dom0, XsType.WATCH, path, token)
    store.ask(store.dom0, XsType.WATCH, path, token[2:])
    assert store.events(store.dom0) == [(path, token[2:])]


def test_depth_of_a_watch_limits_how_far_below_a_change_may_be(store: Store) -> None:
    for depth in ("0", "1", "2"):
        store.ask(store.dom0, XsType.WATCH, "/a", depth, depth)
    store.write(store.dom0, "/a/b/c", "")
    store.events(store.dom0)
    for path, tokens in (("/a", ["0", "1", "2"]), ("/a/b", ["1", "2"]), ("/a/b/c", ["2"])):
        store.write(store.dom0, path, "x")
        assert sorted(store.events(store.dom0)) == [(path, token) for token in tokens]
    with refused("EINVAL"):
        store.ask(store.dom0, XsType.WATCH, "/a", "x", "-1")


def test_guest_with_permission_is_told_of_domains(store: Store) -> None:
    guest = store.guest(1)
    store.ask(store.dom0, XsType.SET_PERMS, "@introduceDomain", "n0", "r1")
    store.ask(guest, XsType.WATCH, "@introduceDomain", "t")
    store.events(guest)
    store.ask(store.dom0, XsType.INTRODUCE, "5", "300", "2")
    assert store.events(guest) == [("@introduceDomain", "t")]
    store.ask(store.dom0, XsType.INTRODUCE, "5", "300", "3")
    assert store.events(guest) == [], "it was there already"


def test_who_may_list_the_parent_sees_a_node_come_and_go(store: Store) -> None:
    guest = store.guest(1)
    store.write(store.dom0, "/shared", "")
    store.ask(store.dom0, XsType.SET_PERMS, "/shared", "r0")
    store.ask(guest, XsType.WATCH, "/shared", "t")
    store.events(guest)
    store.write(store.dom0, "/shared/secret", "")
    store.ask(store.dom0, XsType.SET_PERMS, "/shared/secret", "n0")
    store.write(store.dom0, "/shared/secret/deep", "1")
    store.ask(store.dom0, XsType.RM, "/shared/secret")
    assert store.events(guest) == [("/shared/secret", "t")]


def test_removing_nothing_needs_the_right_to_remove(store: Store) -> None:
    guest = store.guest(1)
    store.write(store.dom0, "/shared", "")
    store.ask(store.dom0, XsType.SET_PERMS, "/shared", "r0")
    with refused("EACCES"):
        store.ask(guest, XsType.RM, "/shared/none")
    store.ask(store.dom0, XsType.SET_PERMS, "/shared", "b0")
    assert store.ask(guest, XsType.RM, "/shared/none") == b"OK\0"
    with refused("ENOENT"):
        store.ask(guest, XsType.RM, "/shared/none/deep")


def test_who_loses_sight_of_a_node_is_told_of_that(store: Store) -> None:
    guest = store.guest(1)
    store.write(store.dom0, "/top/node", "")
    store.ask(store.dom0, XsType.SET_PERMS, "/top", "n0")
    store.ask(store.dom0, XsType.SET_PERMS, "/top/node", "r0")
    store.ask(guest, XsType.WATCH, "/top/node", "t")
    store.events(guest)
    store.ask(store.dom0, XsType.SET_PERMS, "/top/node", "n0")
    assert store.events(guest) == [("/top/node", "t")]
    store.write(store.dom0, "/top/node", "2")
    assert store.events(guest) == []


# -- domains that end


def test_nodes_and_rights_of_a_domain_go_with_it(store: Store) -> None:
    guest = store.guest(1)
    store.ask(store.dom0, XsType.INTRODUCE, "1", "300", "2")
    store.write(guest, "data/x", "1")
    store.write(store.dom0, "/shared", "1")
    store.ask(store.dom0, XsType.SET_PERMS, "/shared", "n0", "r1", "r2")
    store.ask(store.dom0, XsType.WATCH, "/local/domain/1/data", "t")
    store.events(store.dom0)
    store.ask(store.dom0, XsType.RELEASE, "1")
    assert ("/local/domain/1/data", "t") in store.events(store.dom0)
    with refused("ENOENT"):
        store.read(store.dom0, "/local/domain/1/data/x")
    assert store.ask(store.dom0, XsType.GET_PERMS, "/shared") == b"n0\0r2\0"
    assert store.core.store.owned(1).nr_nodes == 0
    assert store.ask(store.dom0, XsType.CONTROL, "check") == b"OK\0"


# -- limits


def test_permissions_of_a_node_are_limited_for_guests(store: Store) -> None:
    guest = store.guest(1)
    store.write(guest, "x", "1")
    store.ask(guest, XsType.SET_PERMS, "x", "n1", "r2", "r3", "r4", "r5")
    with refused("ENOSPC"):
        store.ask(guest, XsType.SET_PERMS, "x", "n1", "r2", "r3", "r4", "r5", "r6")
    store.ask(store.dom0, XsType.SET_PERMS, "/local/domain/1/x", *[f"n{number}" for number in range(60)])


def test_nodes_of_a_transaction_are_limited_for_guests(store: Store) -> None:
    guest = store.guest(1)
    tx = store.begin(guest)
    with refused("ENOSPC"):
        for number in range(quota.DEFAULTS["transaction-nodes"] + 1):
            store.ask(guest, XsType.RM, f"x{number}", tx=tx)
    tx = store.begin(store.dom0)
    for number in range(quota.DEFAULTS["transaction-nodes"] + 1):
        store.ask(store.dom0, XsType.RM, f"/x{number}", tx=tx)


def test_memory_of_a_guest_is_limited_over_all(store: Store) -> None:
    guest = store.guest(1)
    assert store.ask(store.dom0, XsType.CONTROL, "quota", "set", "memory", "100000") == b"OK\0"
    with refused("ENOMEM"):
        for number in range(100):
            store.write(guest, f"n{number}", "x" * 2000)
    with refused("ENOMEM"):
        store.ask(guest, XsType.WATCH, "a" * 1000, "t" * 1000)
    tx = store.begin(guest)
    with refused("ENOMEM"):
        store.write(guest, "n0", "y" * 2048, tx=tx)
    store.ask(guest, XsType.RM, "n1")
    store.write(guest, "other", "1")


# -- the administrator


def test_quotas_can_be_seen_and_set(store: Store) -> None:
    guest = store.guest(1)
    report = store.ask(store.dom0, XsType.CONTROL, "quota").decode()
    assert all(name in report for name in quota.DEFAULTS)
    assert store.ask(store.dom0, XsType.CONTROL, "quota", "set", "nodes", "3") == b"OK\0"
    store.write(guest, "a", "")
    store.write(guest, "b", "")
    with refused("ENOSPC"):
        store.write(guest, "c", "")
    assert b"nodes            :        3" in store.ask(store.dom0, XsType.CONTROL, "quota", "1")
    assert store.ask(store.dom0, XsType.CONTROL, "quota", "set", "nodes", "0") == b"OK\0", "no limit"
    store.write(guest, "c", "")
    for words in (["set", "nodes"], ["set", "other", "1"], ["set", "nodes", "-1"], ["x"], ["1", "2"]):
        with refused("EINVAL"):
            store.ask(store.dom0, XsType.CONTROL, "quota", *words)


def test_soft_quota_names_who_is_over_it_once(store: Store) -> None:
    assert b"memory           :  2097152" in store.ask(store.dom0, XsType.CONTROL, "quota-soft")
    for words in (["set", "nodes", "3"], ["set", "memory"], ["1"]):
        with refused("EINVAL"):
            store.ask(store.dom0, XsType.CONTROL, "quota-soft", *words)
    assert store.ask(store.dom0, XsType.CONTROL, "quota-soft", "set", "memory", "3000") == b"OK\0"
    guest = store.guest(1)
    store.write(guest, "a", "x" * 1000)
    assert store.daemon.asked == []
    for name in ("b", "c", "d"):
        store.write(guest, name, "x" * 1000)
    [said] = store.daemon.asked
    assert "domain 1 makes xenstored hold" in str(said)


def test_other_commands(store: Store) -> None:
    assert b"live-update" in store.ask(store.dom0, XsType.CONTROL, "help")
    for words, asked in (
        (["log", "on"], True),
        (["log", "off"], False),
        (["print", "hello"], "hello"),
        (["live-update", "-s"], ["-s"]),
    ):
        assert store.ask(store.dom0, XsType.CONTROL, *words) == b"OK\0"
        assert store.daemon.asked.pop() == asked
    assert store.ask(store.dom0, XsType.CONTROL, "memreport") == b"OK\0"
    assert "nodes" in str(store.daemon.asked.pop())
    assert store.ask(store.dom0, XsType.CONTROL, "memreport", "file") == b"OK\0"
    assert "nodes" in str(store.daemon.asked.pop())
    with refused("EACCES"):
        store.ask(store.dom0, XsType.CONTROL, "logfile", "/etc/x")
    for words in (["explode"], ["log"], ["print"], ["logfile"], ["memreport", "a", "b"], []):
        with refused("EINVAL"):
            store.ask(store.dom0, XsType.CONTROL, *words)


def test_listing_in_parts_notices_changes_within_a_transaction_too(store: Store) -> None:
    for number in range(600):
        store.write(store.dom0, f"/many/node-{number}", "")
    tx = store.begin(store.dom0)
    first = store.ask(store.dom0, XsType.DIRECTORY_PART, "/many", "0", tx=tx).split(b"\0")[0]
    assert store.ask(store.dom0, XsType.DIRECTORY_PART, "/many", "0", tx=tx).split(b"\0")[0] == first
    store.write(store.dom0, "/many/new", "", tx=tx)
    assert store.ask(store.dom0, XsType.DIRECTORY_PART, "/many", "0", tx=tx).split(b"\0")[0] != first
