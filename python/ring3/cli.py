"""The `ring3` command. Names and exit codes are a contract: 0 done, 1 could not, 2 bad usage; `run` adds 3 and 4."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import Error

if TYPE_CHECKING:
    pass

_ENGINES: Final = ("bt",)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ring3", description="Runs Xen guests in an ordinary process: no root, no VT-x.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)

    run = add("run", "run one guest in the foreground, its console on standard input and output")
    _add_domain_options(run)
    run.add_argument("--engine", choices=_ENGINES, default="bt", help="default: bt")
    up = add("up", "start hypervisor and domain 0 in the background")
    up.add_argument("--memory", type=_positive, metavar="MiB", help="machine memory; default: what the host has left")
    up.add_argument("--pcpus", type=_positive, metavar="N", help="default: as many as the host gives")
    up.add_argument("--engine", choices=_ENGINES, default="bt", help="default: bt")
    add("down", "end the background hypervisor and every domain")
    create = add("create", "create a domain in the background")
    _add_domain_options(create)
    add("list", "list the domains")
    console = add("console", "attach to a domain's console (Ctrl-] leaves it, and the domain goes on)")
    console.add_argument("domain", help="name or domid")
    console.add_argument("-n", "--num", type=int, default=0, metavar="N", help="console number; default: 0, the first")
    what = console.add_mutually_exclusive_group()
    what.add_argument("--log", action="store_true", help="print what it has printed, and end")
    what.add_argument("--tty", action="store_true", help="print the device of its pseudo-terminal, and end")
    screenshot = add("screenshot", "write the picture of a domain's framebuffer to a file")
    screenshot.add_argument("domain", help="name or domid")
    screenshot.add_argument("file", type=Path, help="PNG file")
    add("destroy", "destroy a domain at once").add_argument("domain", help="name or domid")
    add("vcpu-list", "list the vCPUs of domains").add_argument("domain", nargs="*", help="name or domid; default: all")
    vcpu_set = add("vcpu-set", "say how many vCPUs a domain should use")
    vcpu_set.add_argument("domain", help="name or domid")
    vcpu_set.add_argument("vcpus", type=_positive, metavar="N", help="at most its --maxvcpus")
    _add_device_commands(
        add,
        "block",
        ("disk", "disks"),
        spec={"nargs": "+", "metavar": "SPEC", "help": "as --disk of `ring3 run`; several words are one"},
        device_help="xvda, or its number",
    )
    _add_device_commands(
        add,
        "network",
        ("network device", "network devices"),
        spec={"nargs": "*", "metavar": "KEY=VALUE", "help": "as --vif of `ring3 run`; several words are one"},
        device_help="its number, or its address",
    )
    capture = add("network-capture", "write the packets of a network device, or of a switch, as a pcap file")
    capture.add_argument("domain", nargs="?", help="name or domid")
    capture.add_argument("device", nargs="?", help="its number, or its address; default: the domain's first")
    capture.add_argument("--switch", metavar="NAME", help="all that passes a switch, in place of a domain's device")
    capture.add_argument("-w", "--write", type=Path, default=Path("-"), metavar="FILE", help="default: -, to a pipe")
    capture.add_argument("-s", "--snaplen", type=_positive, default=262144, metavar="BYTES", help="of each packet")
    capture.add_argument("-c", "--count", type=_positive, metavar="N", help="end after so many packets")
    add("dmesg", "print the hypervisor's messages").add_argument(
        "-c", "--clear", action="store_true", help="clear them after that"
    )
    add("debug-keys", "send debug keys to the hypervisor: h lists them in its messages").add_argument("keys")
    add("info", "print what the machine is and has").add_argument(
        "--hypercalls", action="store_true", help="print the hypercall table: coverage and calls so far"
    )
    add(
        "xenstore",
        "use xenstore as Xen's tools do: ls, read, write, list, rm, exists, watch, chmod, control (xenstore-ls ...)",
    )
    from ring3.tools.images.command import add_options as add_image_options

    add_image_options(add("image", "make, list and remove disk images with an operating system"))
    add("doctor", "say what this host offers, and what to do about what it lacks")
    return parser


def _add_device_commands(
    add: Callable[[str, str], argparse.ArgumentParser],
    kind: str,
    nouns: tuple[str, str],
    *,
    spec: dict[str, str],
    device_help: str,
) -> None:
    """Adds KIND-attach, KIND-detach and KIND-list."""
    attach = add(f"{kind}-attach", f"give a running domain a {nouns[0]}")
    attach.add_argument("domain", help="name or domid")
    attach.add_argument("spec", nargs=spec["nargs"], metavar=spec["metavar"], help=spec["help"])
    detach = add(f"{kind}-detach", f"take a {nouns[0]} away from a running domain")
    detach.add_argument("domain", help="name or domid")
    detach.add_argument("device", help=device_help)
    detach.add_argument("-f", "--force", action="store_true", help="even if the domain does not let go of it")
    add(f"{kind}-list", f"list the {nouns[1]} of domains").add_argument("domain", nargs="+", help="name or domid")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(words)
    if options.command in ("run", "create") and not (options.kernel or options.config):
        parser.error(f"{options.command}: give a kernel by --kernel, or a configuration file")
    if options.command == "network-capture" and (options.domain is None) == (options.switch is None):
        parser.error("network-capture: give a domain, or --switch NAME")
    return options


def _dispatch(options: argparse.Namespace) -> int:
    """Imports what the command needs and no more: `run` is judged by its start-up time."""
    match options.command:
        case "run" | "create":
            from ring3.tools.domain_options import domain_config

            config = domain_config(options)
            if options.command == "run":
                from ring3.tools.run import run

                return run(config, engine=options.engine)
            from ring3.tools import manage

            return manage.create(config)
        case "up":
            from ring3.tools import manage

            return manage.up(memory_mib=options.memory, nr_pcpus=options.pcpus, engine=options.engine)
        case "down":
            from ring3.tools import manage

            return manage.down()
        case "destroy":
            from ring3.tools import manage

            return manage.destroy(options.domain)
        case "console":
            from ring3.tools import manage

            if options.tty:
                return manage.console_tty(options.domain, options.num)
            return manage.console(options.domain, options.num, only_log=options.log)
        case "screenshot":
            from ring3.tools.screenshot import screenshot

            return screenshot(options.domain, options.file)
        case "vcpu-list" | "vcpu-set":
            from ring3.tools import vcpus

            if options.command == "vcpu-list":
                return vcpus.list_vcpus(options.domain)
            return vcpus.set_vcpus(options.domain, options.vcpus)
        case "network-attach" | "network-detach" | "network-list":
            from ring3.tools import network

            if options.command == "network-attach":
                return network.attach(options.domain, options.spec)
            if options.command == "network-detach":
                return network.detach(options.domain, options.device, is_forced=options.force)
            return network.list_vifs(options.domain)
        case "network-capture":
            from ring3.tools.network_capture import capture

            return capture(
                options.domain,
                options.device,
                options.switch,
                output=options.write,
                snaplen=options.snaplen,
                nr_packets_max=options.count,
            )
        case "block-attach" | "block-detach" | "block-list":
            from ring3.tools import block

            if options.command == "block-attach":
                return block.attach(options.domain, options.spec)
            if options.command == "block-detach":
                return block.detach(options.domain, options.device, is_forced=options.force)
            return block.list_disks(options.domain)
        case "list":
            from ring3.tools import show

            return show.list_domains()
        case "dmesg":
            from ring3.tools import show

            return show.dmesg(clear=options.clear)
        case "debug-keys":
            from ring3.tools import show

            return show.debug_keys(options.keys)
        case "info":
            from ring3.tools import show

            return show.info(hypercalls=options.hypercalls)
        case "image":
            from ring3.tools.images.command import image

            return image(options)
        case command if command.startswith("xenstore"):
            from ring3.tools.xenstore.main import main as xenstore

            return xenstore(command, options.words)
        case _:
            from ring3.tools.doctor import doctor

            return doctor()


def _open_standard_descriptors() -> None:
    """Opens those of 0, 1 and 2 that the caller has closed: a socket must not become standard output."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (argparse ends the process with 2 on bad usage)."""
    _open_standard_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Their options are those of Xen's tools, which argparse would take for its own.
    is_xenstore = bool(words) and words[0].split("-")[0] == "xenstore"
    options = argparse.Namespace(command=words[0], words=words[1:]) if is_xenstore else _parse(words)
    try:
        return _dispatch(options)
    except Error as error:
        print(f"ring3: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Nobody reads our output: there is nobody to tell, and flushing at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"ring3: {error}", file=sys.stderr)
        return 1
