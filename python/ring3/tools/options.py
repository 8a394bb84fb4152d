"""The options of the `ring3` command and its sub-commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

_ENGINES: Final = ("bt",)


class _Parser(argparse.ArgumentParser):
    """A parser that asks how wide the terminal is only when it prints; argparse's own does at each option."""

    def __init__(self, prog: str | None = None, description: str | None = None, **_more: object) -> None:
        narrow = partial(argparse.HelpFormatter, width=80)
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=narrow)

    def format_help(self) -> str:
        self.formatter_class = argparse.HelpFormatter
        return super().format_help()

    def format_usage(self) -> str:
        self.formatter_class = argparse.HelpFormatter
        return super().format_usage()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _escape(text: str) -> bytes:
    raw = text.encode()
    if len(raw) == 1:
        return raw
    if len(raw) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        return bytes([ord(text[1].upper()) & 0x1F])
    raise argparse.ArgumentTypeError(f"{text!r} is no key such as ^] or q")


def _add_domain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="configuration file, as xl.cfg(5) says")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="bzImage (vmlinuz) or ELF (vmlinux)")
    parser.add_argument("--ramdisk", type=Path, metavar="FILE", help="initramfs")
    parser.add_argument("--cmdline", metavar="STRING", help="kernel command line")
    parser.add_argument("--memory", type=_positive, metavar="MiB", help="default: 512")
    parser.add_argument("--vcpus", type=_positive, metavar="N", help="default: 1")
    parser.add_argument("--maxvcpus", type=_positive, metavar="N", help="for vcpu-set; default: as --vcpus")
    parser.add_argument(
        "--tsc-mode",
        choices=("default", "always_emulate", "native"),
        help="what the domain reads as TSC, as in xl.cfg; default: the host's where that can be relied on",
    )
    parser.add_argument(
        "--cpuid",
        action="append",
        default=[],
        metavar="SPEC",
        help="what its CPUs show, as in xl.cfg: host,KEY=0|1|x|k|s|NUMBER,... or LEAF[,SUBLEAF]:REGISTER=BITS,...; "
        "may come again",
    )
    parser.add_argument("--name", metavar="NAME", help="default: from the kernel's file name")
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="SPEC",
        help="a console more: name=NAME,connection=pty or name=NAME,connection=socket,path=PATH; may come again",
    )
    parser.add_argument(
        "--p9",
        action="append",
        default=[],
        metavar="SPEC",
        help="share a host directory: tag=TAG,path=DIR[,security_model=none|mapped][,readonly=1]; may come again",
    )
    parser.add_argument(
        "--vif",
        action="append",
        default=[],
        metavar="SPEC",
        help="a network device, as in xl's vif=: mac=MAC,network=user|switch|bridge,switch=NAME,bridge=NAME,rate=RATE,"
        "mtu=MTU,forward=tcp:PORT:GUEST-PORT; an empty SPEC is a user network; may come again",
    )
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="SPEC",
        help="a disk, as xl-disk-configuration(5) says: PATH,raw,xvda,rw or vdev=xvda,...,target=PATH; may come again",
    )
    parser.add_argument(
        "--vfb",
        action="append",
        default=[],
        metavar="SPEC",
        help="a framebuffer, keyboard and pointer, by VNC: vnc=1[,vnclisten=IP][,vncdisplay=N][,vncpasswd=P] ...",
    )
    parser.add_argument("--on-reboot", choices=("restart", "destroy"), help="default: restart")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_domain_options(parser)
    parser.add_argument("--engine", choices=_ENGINES, default="bt", help="default: bt")


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory", type=_positive, metavar="MiB", help="machine memory; default: what the host has left"
    )
    parser.add_argument("--pcpus", type=_positive, metavar="N", help="default: as many as the host gives")
    parser.add_argument("--engine", choices=_ENGINES, default="bt", help="default: bt")


def _add_nothing(_parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def _add_domain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", help="name or domid")


def _add_domains(parser: argparse.ArgumentParser, nargs: str, help_text: str = "name or domid") -> None:
    parser.add_argument("domain", nargs=nargs, help=help_text)


def _add_console(parser: argparse.ArgumentParser) -> None:
    _add_domain(parser)
    parser.add_argument("-n", "--num", type=int, default=0, metavar="N", help="console number; default: 0, the first")
    parser.add_argument(
        "-t", "--type", choices=("pv", "serial", "vuart"), default="pv", help="default: pv, which is all that there are"
    )
    parser.add_argument(
        "-e",
        "--escape",
        type=_escape,
        default=b"\x1d",
        metavar="CHAR",
        help="the key that leaves it, as it is or as ^X for Ctrl-X; default: ^]",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--log", action="store_true", help="print what it has printed, and end")
    what.add_argument("--tty", action="store_true", help="print the device of its pseudo-terminal, and end")


def _add_screenshot(parser: argparse.ArgumentParser) -> None:
    _add_domain(parser)
    parser.add_argument("file", type=Path, help="PNG file")


def _add_vcpu_set(parser: argparse.ArgumentParser) -> None:
    _add_domain(parser)
    parser.add_argument("vcpus", type=_positive, metavar="N", help="at most its --maxvcpus")


def _add_attach(parser: argparse.ArgumentParser, nargs: str, metavar: str, help_text: str) -> None:
    _add_domain(parser)
    parser.add_argument("spec", nargs=nargs, metavar=metavar, help=help_text)


def _add_detach(parser: argparse.ArgumentParser, device_help: str) -> None:
    _add_domain(parser)
    parser.add_argument("device", help=device_help)
    parser.add_argument("-f", "--force", action="store_true", help="even if the domain does not let go of it")


def _add_network_capture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", nargs="?", help="name or domid")
    parser.add_argument("device", nargs="?", help="its number, or its address; default: the domain's first")
    parser.add_argument("--switch", metavar="NAME", help="all that passes a switch, in place of a domain's device")
    parser.add_argument("-w", "--write", type=Path, default=Path("-"), metavar="FILE", help="default: -, to a pipe")
    parser.add_argument("-s", "--snaplen", type=_positive, default=262144, metavar="BYTES", help="of each packet")
    parser.add_argument("-c", "--count", type=_positive, metavar="N", help="end after so many packets")


def _add_dmesg(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--clear", action="store_true", help="clear them after that")


def _add_debug_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hypercalls", action="store_true", help="print the hypercall table: coverage and calls so far"
    )


def _add_image(parser: argparse.ArgumentParser) -> None:
    from ring3.tools.images.command import add_options

    add_options(parser)


_Options: TypeAlias = Callable[[argparse.ArgumentParser], None]
_BLOCK_SPEC: Final = "as --disk of `ring3 run`; several words are one"
_VIF_SPEC: Final = "as --vif of `ring3 run`; several words are one"
_COMMANDS: Final[dict[str, tuple[str, _Options]]] = {
    "run": ("run one guest in the foreground, its console on standard input and output", _add_run),
    "up": ("start hypervisor and domain 0 in the background", _add_up),
    "down": ("end the background hypervisor and every domain", _add_nothing),
    "create": ("create a domain in the background", _add_domain_options),
    "list": ("list the domains", _add_nothing),
    "console": ("attach to a domain's console (Ctrl-] leaves it, and the domain goes on)", _add_console),
    "screenshot": ("write the picture of a domain's framebuffer to a file", _add_screenshot),
    "destroy": ("destroy a domain at once", _add_domain),
    "vcpu-list": (
        "list the vCPUs of domains",
        partial(_add_domains, nargs="*", help_text="name or domid; default: all"),
    ),
    "vcpu-set": ("say how many vCPUs a domain should use", _add_vcpu_set),
    "block-attach": (
        "give a running domain a disk",
        partial(_add_attach, nargs="+", metavar="SPEC", help_text=_BLOCK_SPEC),
    ),
    "block-detach": ("take a disk away from a running domain", partial(_add_detach, device_help="xvda, or its number")),
    "block-list": ("list the disks of domains", partial(_add_domains, nargs="+")),
    "network-attach": (
        "give a running domain a network device",
        partial(_add_attach, nargs="*", metavar="KEY=VALUE", help_text=_VIF_SPEC),
    ),
    "network-detach": (
        "take a network device away from a running domain",
        partial(_add_detach, device_help="its number, or its address"),
    ),
    "network-list": ("list the network devices of domains", partial(_add_domains, nargs="+")),
    "network-capture": (
        "write the packets of a network device, or of a switch, as a pcap file",
        _add_network_capture,
    ),
    "dmesg": ("print the hypervisor's messages", _add_dmesg),
    "debug-keys": ("send debug keys to the hypervisor: h lists them in its messages", _add_debug_keys),
    "info": ("print what the machine is and has", _add_info),
    "xenstore": (
        "use xenstore as Xen's tools do: ls, read, write, list, rm, exists, watch, chmod, control (xenstore-ls ...)",
        _add_nothing,
    ),
    "image": ("make, list and remove disk images with an operating system", _add_image),
    "doctor": ("say what this host offers, and what to do about what it lacks", _add_nothing),
}


def _parser_of_all() -> argparse.ArgumentParser:
    parser = _Parser("ring3", "Runs Xen guests in an ordinary process: no root, no VT-x.")
    commands = parser.add_subparsers(prog="ring3", dest="command", required=True, metavar="COMMAND")
    for name, (text, add_options) in _COMMANDS.items():
        add_options(commands.add_parser(name, help=text, description=_sentence(text)))
    return parser


def _parser_of(command: str) -> argparse.ArgumentParser:
    """Makes the parser of one command: `run` is judged by its start-up time, and all of them take 15 ms."""
    text, add_options = _COMMANDS[command]
    parser = _Parser(f"ring3 {command}", _sentence(text))
    parser.set_defaults(command=command)
    add_options(parser)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the options; ends the process with 2 on bad usage, as argparse does."""
    is_known = bool(words) and words[0] in _COMMANDS
    parser = _parser_of(words[0]) if is_known else _parser_of_all()
    options = parser.parse_args(words[1:] if is_known else words)
    if options.command in ("run", "create") and not (options.kernel or options.config):
        parser.error("give a kernel by --kernel, or a configuration file")
    if options.command == "network-capture" and (options.domain is None) == (options.switch is None):
        parser.error("give a domain, or --switch NAME")
    return options
