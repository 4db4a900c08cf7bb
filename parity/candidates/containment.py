"""Keeping a candidate's process inside one folder: an audit hook that names what was tried, Landlock beneath it.

The hook sees what Python code does and remembers it even where the candidate swallows the error; on Linux, Landlock
refuses the same to C code and to child processes.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Events whose first arguments are the paths that they change, and the position of the first dir_fd.
CHANGES = {
    "os.remove": (1, 1),
    "os.rmdir": (1, 1),
    "os.mkdir": (1, 2),
    "os.rename": (2, 2),
    "os.truncate": (1, None),
    "os.chmod": (1, 2),
    "os.chown": (1, 3),
    "os.utime": (1, 3),
}
LINKS = {"os.link": 2, "os.symlink": 2}  # only where the new name goes
REACHING_OUT = ("socket.connect", "socket.sendto", "socket.sendmsg")
QUIETLY_REFUSED = ("socket.bind", "socket.gethostbyname")  # libraries probe so on import
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")

# What libraries start on import to learn about the machine, and the compilers of mx.compile and torch.
HARMLESS_PROGRAMS = {
    *("ldconfig", "uname", "lscpu", "sysctl", "sw_vers", "file", "which", "xcrun"),
    *("cc", "gcc", "g++", "c++", "clang", "clang++", "ld", "objdump", "nvcc"),
}


def contain(folder: Path) -> list[str]:
    """Refuse writes outside `folder`, the network and other programs from now on, for ever.

    Returns the list that will hold a sentence's end for each attempt.
    """
    attempts: list[str] = []
    allowed = os.path.realpath(folder)

    def refuse(what: str, seen: bool = True):
        if seen:
            attempts.append(what)
        raise PermissionError(f"a candidate's process may not {what}")

    def check(path, dir_fd=-1):
        if isinstance(path, int) or path is None:
            return
        full = os.path.join(_folder_of(dir_fd), os.fsdecode(path))
        # The parent folder is resolved, not the last name: removing a link changes the folder that it lies in.
        full = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
        for place in (full, os.path.realpath(full)):
            if place != allowed and not place.startswith((allowed + os.sep, "/dev/null", "/dev/shm/")):
                refuse(f"write to {place}")

    def hook(event, args):
        if event == "open":
            path, _, flags = args
            if (flags or 0) & WRITING:
                check(path)
        elif event in CHANGES:
            paths, position = CHANGES[event]
            for index, path in enumerate(args[:paths]):
                check(path, args[position + index] if position is not None and len(args) > position + index else -1)
        elif event in LINKS:
            check(args[1], args[LINKS[event]] if len(args) > LINKS[event] else -1)
        elif event in REACHING_OUT:
            if args[0].family != getattr(socket, "AF_UNIX", None):
                refuse("use the network")
        elif event == "socket.getaddrinfo":
            refuse("use the network")
        elif event in QUIETLY_REFUSED:
            refuse("use the network", seen=False)
        elif event in PROGRAMS:
            program = os.path.basename(os.fsdecode(args[0])) if args and isinstance(args[0], (str, bytes)) else event
            if program not in HARMLESS_PROGRAMS:
                refuse(f"start another program ({program.split()[0]})")
        elif event in ("os.kill", "os.killpg") and args[0] != os.getpid():
            refuse("signal another process")

    sys.addaudithook(hook)
    _landlock(allowed)
    return attempts


def limit(memory: int) -> None:
    """Backstops behind the harness's own watch: `memory` bytes of data, 1 GiB a file, no core dumps."""
    import resource

    wanted = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 1 << 30}
    if sys.platform == "linux":
        wanted["RLIMIT_DATA"] = 2 * memory + (2 << 30)  # far above, as it counts what is reserved, not what is used
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def die_with_parent() -> None:
    """On Linux: end when the harness ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def _folder_of(dir_fd) -> str:
    if not isinstance(dir_fd, int) or dir_fd < 0:
        return os.getcwd()
    if sys.platform == "linux":
        return os.readlink(f"/proc/self/fd/{dir_fd}")
    import fcntl

    return os.fsdecode(fcntl.fcntl(dir_fd, 50, b"\0" * 1024).rstrip(b"\0"))  # F_GETPATH


# --- Landlock (Linux 5.13 and later; where it is missing, the audit hook stands alone) -----------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, REFER, TRUNCATE = 1 << 1, 1 << 13, 1 << 14
CHANGE_FOLDERS = sum(1 << bit for bit in range(4, 13))  # remove and make entries of every kind
NO_NETWORK = 0b11  # bind and connect, of TCP
NO_NEW_PRIVILEGES = 38


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def _landlock(folder: str) -> None:
    """Let this process and its children write beneath `folder` only, where the kernel can see to it."""
    version = landlock_version()
    if version < 1:
        return
    libc = ctypes.CDLL(None)
    files = WRITE_FILE | CHANGE_FOLDERS | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    ruleset = struct.pack("=QQ", files, NO_NETWORK) if version >= 4 else struct.pack("=Q", files)
    rules = libc.syscall(CREATE_RULESET, ruleset, len(ruleset), 0)
    if rules < 0:
        return
    devices = files & (WRITE_FILE | TRUNCATE)  # an accelerator's driver opens its devices for writing
    for place, allowed in ((folder, files), ("/dev", devices), ("/dev/shm", files)):
        if os.path.isdir(place):
            descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
            libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, descriptor), 0)
            os.close(descriptor)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)
