"""The `ring3` command. Names and exit codes are a contract: 0 done, 1 could not, 2 bad usage; `run` adds 3 and 4."""

from __future__ import annotations

from ring3 import deferred

deferred.defer()  # before what would import them

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from ring3.errors import ConfigError, Error  # noqa: E402
from ring3.tools.options import parse  # noqa: E402


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
            if options.type != "pv":
                raise ConfigError(f"there is no {options.type} console: a PV domain has none", key="type")
            return manage.console(options.domain, options.num, escape=options.escape, only_log=options.log)
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
    options = argparse.Namespace(command=words[0], words=words[1:]) if is_xenstore else parse(words)
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
