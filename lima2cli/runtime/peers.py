"""Who is at the other end of a Unix socket."""

import os
import socket
import struct

CREDENTIALS = struct.Struct("3i")
"""pid, uid, gid of a peer (struct ucred)."""


def same_user(peer: socket.socket) -> bool:
    """Whether a process of the same user is there (SO_PEERCRED)."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return bool(CREDENTIALS.unpack(credentials)[1] == os.getuid())
