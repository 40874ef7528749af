"""Becomes a server that dies with its parent: `python -I -S launch.py SIGNAL PARENT UID GID PROGRAM ARGUMENT...`.

A program of its own rather than a function between fork and exec, which is not safe in a program with threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    signal, parent, uid, gid = map(int, sys.argv[1:5])
    if os.getuid() == 0 and uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which would clear it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the program that wanted this server is gone")
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606 - the server that was asked for


if __name__ == "__main__":
    main()
