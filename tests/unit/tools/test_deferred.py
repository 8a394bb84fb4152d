"""What a start leaves out."""

import subprocess
import sys

_PROGRAM = """
import importlib, sys
from ring3.cli import main
for name in ("tools.launch", "tools.foreground", "builder.pv", "dom0.__main__", *sys.argv[1:]):
    importlib.import_module("ring3." + name)
print(*({"ast", "dis"} & set(sys.modules)))
import inspect, ipaddress
from inspect import isfunction
print(inspect.isfunction(main), isfunction(3), ipaddress.ip_address("::1").is_loopback, inspect.signature(main))
"""
_MODULES = ("hypervisor.registry", "dom0.xenstored.server", "dom0.console.server")


def test_what_data_classes_hardly_ever_need_is_left_out_until_it_is_wanted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *_MODULES], capture_output=True, text=True, check=True, timeout=60
    )
    left_out, wanted = done.stdout.splitlines()
    assert left_out == "", "a data class without a docstring imports them"
    assert wanted == "True False True (arguments: 'Sequence[str] | None' = None) -> 'int'"
