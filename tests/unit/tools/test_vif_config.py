"""What `vif=` entries say, and what is refused."""

import socket

import pytest

from ring3.errors import ConfigError
from ring3.tools.devices.vif import VifConfig, parse_all


def nodes(spec: str) -> dict[str, str]:
    return dict(VifConfig.parse(spec, 0).nodes(1).back)


def test_empty_entry_is_a_user_network_with_an_address_of_xens() -> None:
    config = VifConfig.parse("", 3)
    assert (config.network, config.number) == ("user", 3)
    assert config.mac.startswith("00:16:3e:")
    assert VifConfig.parse("", 3).mac != config.mac


def test_entry_of_xl() -> None:
    back = nodes("mac=0:16:3E:1:2:3, bridge=xenbr1, type=vif, model=e1000, vifname=web, ip=10.0.0.1, rate=10Mb/s@20ms")
    assert back["mac"] == "00:16:3e:01:02:03"
    assert (back["network"], back["bridge"], back["vifname"], back["ip"]) == (
        "bridge xenbr1",
        "xenbr1",
        "web",
        "10.0.0.1",
    )
    assert back["rate"] == "25000,20000"
    front = VifConfig.parse("mac=00:16:3e:00:00:07,mtu=9000,trusted=0,devid=4", 0).nodes(1).front
    assert front == {"handle": "4", "mac": "00:16:3e:00:00:07", "trusted": "0", "mtu": "9000"}


def test_script_that_xl_runs_by_default_is_a_bridge() -> None:
    assert nodes("script=vif-bridge,bridge=br7")["network"] == "bridge br7"
    assert nodes("script=/etc/xen/scripts/vif-bridge")["network"] == "bridge xenbr0"


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1GB/s", "50000000,50000"), ("10Kb/s@1s", "1250,1000000"), ("250KB/s", "12500,50000"), ("8000b/s", "50,50000")],
)
def test_rates(text: str, rate: str) -> None:
    assert nodes(f"rate={text}")["rate"] == rate


def test_forwards_become_options_of_passt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    config = VifConfig.parse("forward=tcp:8080:80,forward=udp:127.0.0.1/53,mtu=1400", 0)
    command = config.passt_command("/s")
    assert command[:5] == ["/usr/bin/passt", "--foreground", "--quiet", "--socket", "/s"]
    assert command[-6:] == ["--mtu", "1400", "--tcp-ports", "8080:80", "--udp-ports", "127.0.0.1/53:53"]
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(ConfigError, match="passt"):
        config.passt_command("/s")


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
@pytest.mark.parametrize("address", ["", "127.0.0.1/"])
def test_port_of_the_host_that_is_taken_is_refused(protocol: str, kind: socket.SocketKind, address: str) -> None:
    """Issue 5: passt leaves it out without a word, and what was to come in by it went to another program."""
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        [forward] = VifConfig.parse(f"forward={protocol}:{address}{port}:22", 0).forwards
        with pytest.raises(ConfigError, match=f"forward={protocol}:{address}{port}: Address already in use"):
            forward.check()
    forward.check()


def test_addresses_of_ip_are_the_ones_that_passt_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    config = VifConfig.parse("ip=10.0.0.7 10.0.0.8 10.1.2.3/24 FD00::0:1", 0)
    assert config.ip == "10.0.0.7 10.0.0.8 10.1.2.0/24 fd00::1"
    assert config.passt_command("/s")[-4:] == ["--address", "10.0.0.7", "--address", "fd00::1"]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["mac=0:16:3e:0:0:1", "", "mac=00:16:3E:00:00:01"], "vif 0 and vif 2 have the same mac=00:16:3e:00:00:01"),
        (["", "devid=0"], "devid=0 is there twice"),
    ],
)
def test_devices_that_collide_are_named(specs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_all(specs)


def test_flags_of_xl() -> None:
    assert [VifConfig.parse(word, 0).is_trusted for word in ("trusted", "untrusted", "")] == [True, False, True]


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ("script=vif-nat", "script"),
        ("script=vif-bridge,network=user", "script"),
        ("gatewaydev=eth0", "gatewaydev"),
        ("netdev=eth0", "netdev"),
        ("forwarddev=eth0", "forwarddev"),
        ("coloft_forwarddev=eth0", "coloft_forwarddev"),
        ("ip=10.0.0.256", "ip=10.0.0.256"),
        ("colour=red", "colour"),
        ("mtu=1", "mtu"),
        ("rate=much", "rate"),
    ],
)
def test_error_names_the_key(spec: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        VifConfig.parse(spec, 0)


@pytest.mark.parametrize(
    "spec",
    [
        "mac=1:2:3",
        "mac=01:00:00:00:00:01",
        "mac=00:00:00:00:00:00",
        "type=ioemu",
        "backend=driverdom",
        "script=vif-nat",
        "network=nat",
        "network=user,bridge=br0",
        "switch=a,bridge=b",
        "switch=a,forward=tcp:1:2",
        "forward=tcp:0",
        "forward=tcp:99999",
        "forward=sctp:1",
        "forward=tcp:80 --pcap x",
        "bridge=a/b",
        "rate=fast",
        "rate=1b/s@1us",
        "mtu=10",
        "mtu=70000",
        "trusted=yes",
        "devid=x",
        "colour=red",
        "bridge",
        "mac=00:16:3e:00:00:01,mac=00:16:3e:00:00:02",
    ],
)
def test_what_no_device_can_be_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        VifConfig.parse(spec, 0)
