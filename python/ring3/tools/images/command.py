"""`ring3 image`: makes, lists and removes images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    debian = actions.add_parser("debian", help="make a Debian image that boots", allow_abbrev=False)
    debian.add_argument("name", help="of image, domain and host: lower-case letters, digits, -")
    debian.add_argument("--suite", default="bookworm", help="default: bookworm")
    debian.add_argument("--size", default="2G", help="of the disk, which is sparse; default: 2G")
    debian.add_argument("--package", action="append", default=[], metavar="P", help="a package more; may come again")
    debian.add_argument("--mirror", metavar="URL", help="where packages come from; default: mmdebstrap's")
    debian.add_argument("--memory", type=int, default=512, metavar="MiB", help="of the domain; default: 512")
    actions.add_parser("list", help="list the images", allow_abbrev=False)
    actions.add_parser("rm", help="remove an image", allow_abbrev=False).add_argument("name")


def image(options: argparse.Namespace) -> int:
    """Does it. Raises Error."""
    from ring3.tools.images import store  # not wanted by whoever only asks for the options

    match options.action:
        case "debian":
            from ring3.tools.images import debian

            wanted = debian.DebianOptions(
                options.suite, options.size, tuple(options.package), options.mirror, options.memory
            )
            made = debian.make(options.name, wanted)
            print(f"{made.name}: `ring3 create {made.config}` boots it")
        case "list":
            for found in store.images():
                used_mib = found.disk.stat().st_blocks * 512 >> 20
                size_mib = found.disk.stat().st_size >> 20
                print(f"{found.name:<24} {used_mib:>6} of {size_mib:>6} MiB  {found.config}")
        case _:
            store.remove(options.name)
    return 0
