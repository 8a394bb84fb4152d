"""What a request handler is."""

from collections.abc import Callable
from typing import TypeAlias

from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.wire import Message

Handlers: TypeAlias = dict[int, Callable[[Client, Message], None]]
"""By request type. A handler queues its reply, or raises RefusedError or TransactionTooBigError."""
