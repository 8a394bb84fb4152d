"""Leaves out of a start what the standard library imports and this program hardly ever uses."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

_RARELY_USED: Final = ("inspect", "ipaddress")
"""For data classes without a docstring, and for addresses in URLs. With what they import themselves they are a tenth of
what `run` imports.
"""


class _Deferred(ModuleType):
    """Stands for a module until somebody wants something of it: `importlib.util.LazyLoader`'s only until its import."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def defer() -> None:
    """Has these modules loaded when somebody uses them."""
    for name in _RARELY_USED:
        sys.modules.setdefault(name, _Deferred(name))
