"""Free TCP ports on loopback, below the range from which the kernel takes the ports of outgoing connections."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
OTHER_HOST = "127.0.0.2"  # loopback as well, on Linux without further ado


def bound() -> socket.socket:
    """A socket that holds a free port; listen on it, or close it to hand the port to another process."""
    for port in random.sample(range(20000, 32768), 200):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            sock.close()
        else:
            return sock
    raise OSError(f"no free port on {HOST} in 200 tries")


def free() -> int:
    with bound() as sock:
        port: int = sock.getsockname()[1]
        return port
