# SPDX-License-Identifier: Apache-2.0
"""Looked for by every interpreter that starts with this folder in PYTHONPATH: writes down what a process should not do.

An audit hook sees every event from here on, in the server and in the processes that it starts. What an import does is
not looked at, except which files it opens; everything else that runs code, starts a process, opens a connection or
touches a file elsewhere is one JSON line in the file PYTHON_WATCHDOG_REPORT. PYTHON_WATCHDOG_MODEL is the folder that
may only be read, and only the kinds of files that a model consists of; PYTHON_WATCHDOG_CACHE may be written to.
"""

import json
import os
import sys
from types import FrameType

REPORT = os.open(os.environ["PYTHON_WATCHDOG_REPORT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
MODEL = os.path.realpath(os.environ["PYTHON_WATCHDOG_MODEL"]) + os.sep
CACHE = os.path.realpath(os.environ["PYTHON_WATCHDOG_CACHE"])
SOURCES = os.path.realpath(os.environ["PYTHON_WATCHDOG_SOURCES"])
INSTALLED = {*(os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sys.path)), SOURCES}
READABLE = (*INSTALLED, CACHE, "/proc", "/sys", "/dev/null", "/dev/urandom", "/etc/localtime", "/usr/lib", "/usr/share")
NAMES = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf")
PARTS = (".json", ".safetensors", ".jinja", ".model", "README.md")
CODE = {"exec", "compile"}
PROCESSES = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink",
           "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.utime"}  # fmt: skip
NEVER = {"pickle.find_class", "socket.connect", "socket.sendto", "socket.gethostbyname", "urllib.Request",
         "ftplib.connect", "http.client.connect", "smtplib.connect", "webbrowser.open", "code.__new__", "import.pth",
         "shelve.open"}  # fmt: skip
MAKERS = ("/jinja2/environment.py", "/typing.py")
"""Who may compile and run, outside an import: the sandbox, of the checkpoint's template; annotations of our records."""
LAUNCHER = "/linnet/child_process.py"


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """The hook."""
    if event == "open":
        problem = opened(arguments)
    elif event in CHANGES:
        problem = next(
            (str(one) for one in arguments[:2] if isinstance(one, (str, bytes)) and not below(one, CACHE)), None
        )
    elif event in CODE:
        problem = None if imported() or called_by(MAKERS) else "code"
    elif event in PROCESSES:
        problem = None if called_by((LAUNCHER,), 8) else str(arguments)[:500]
    elif event in NEVER:
        problem = None if event == "code.__new__" and imported() else str(arguments)[:500]
    else:
        return
    if problem is not None:
        line = {"event": event, "what": problem, "argv": sys.argv[:3], "where": stack()}
        os.write(REPORT, (json.dumps(line) + "\n").encode())


def opened(arguments: tuple[object, ...]) -> str | None:
    """Why a file may not be opened so; None: it may."""
    path, _, flags = (*arguments, None, None)[:3]
    if not isinstance(path, (str, bytes)):  # a descriptor that is open already
        return None
    writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    name = os.path.realpath(os.fsdecode(path))
    if writes and name != "/dev/null":
        return None if below(name, CACHE) else f"{name} is written to"
    if (name + os.sep).startswith(MODEL):
        return None if name + os.sep == MODEL or name.endswith(PARTS) else f"{name} of the model is read"
    return None if name in NAMES or any(below(name, root) for root in READABLE) else f"{name} is read"


def below(path: str | bytes, root: str) -> bool:
    """Whether a path is a folder or something in it."""
    name = os.path.realpath(os.fsdecode(path))
    return name == root or name.startswith(root + os.sep)


def frames() -> list[FrameType]:
    """Of who did it, the innermost first, without ours."""
    found, frame = [], sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            found.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def imported() -> bool:
    """Whether an import does it, or the interpreter itself: what its command line names."""
    named = [frame.f_code.co_filename for frame in frames()]
    return not named or named[0] == "<frozen runpy>" or any(name.startswith("<frozen importlib") for name in named)


def called_by(files: tuple[str, ...], within: int = 1) -> bool:
    """Whether one of the innermost callers is in one of these files."""
    return any(frame.f_code.co_filename.endswith(files) for frame in frames()[:within])


def stack() -> list[str]:
    """For people."""
    return [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in frames()[:6]]


sys.addaudithook(watch)
