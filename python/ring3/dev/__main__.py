"""`python -m ring3.dev demo`, `stress`, and `fetch` to get the guest artefacts alone."""

import argparse
import os
import sys
from pathlib import Path

from ring3.dev import demo, initramfs, kernel, stress


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ring3.dev", description=__doc__)
    parser.add_argument("action", choices=["demo", "fetch", "stress"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    cache = Path(os.environ.get("RING3_GUEST_CACHE", ".cache/guest"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if options.action == "stress":
            return stress.main(options.arguments)
        image = kernel.default(cache)
        ramdisk = initramfs.build(cache)
        if options.action == "fetch":
            print(f"{image}\n{ramdisk}\n{kernel.fetch(cache, 'main')}")
        else:
            demo.run(image, ramdisk)
    except (initramfs.ArtefactError, demo.DemoError, OSError) as error:
        print(f"ring3 {options.action}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
