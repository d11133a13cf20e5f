# SPDX-License-Identifier: Apache-2.0
"""A Python process of our own with a socket to it: how it is started, how it is ended, and how it obeys its parent.

Standard library only, so that a command can start one before it imports anything heavy. The child ends with its parent,
however that ends: it reads the end of the socket, and the kernel kills it (Linux's parent-death signal). Signals of the
terminal and of service managers are the parent's business: the child has a session of its own and ignores SIGINT and
SIGTERM.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

_BOOT = "import sys; sys.path.append(sys.argv.pop()); from linnet.child_process import boot; boot()"
_PR_SET_PDEATHSIG = 1
_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "NO_COLOR", "VIRTUAL_ENV")
_PASSED_FAMILIES = (
    "LC_", "XDG_", "LD_", "PYTHON", "MALLOC_", "GLIBC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_",
    "CUDA_", "NVIDIA_", "TORCH", "TRITON_", "ASAN_", "UBSAN_", "TSAN_", "LSAN_", "COVERAGE_",
)  # fmt: skip
"""Variables that a child is given: where things are, how libraries count and speak. No others: no key, no token."""
_HINTS = {
    signal.SIGKILL: "; unless somebody did that, memory ran out: see the kernel's log, and give the KV cache less",
    signal.SIGBUS: "; a file of the model was changed or cut off while it was in use, or cannot be read",
}


@dataclass(frozen=True)
class ChildProcess:
    """A started process, our end of the socket (the other is open in the child alone), and the variables it got."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    environment: Mapping[str, str] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def kill(self) -> None:
        """End it now, if it has not ended; its socket reads as closed then. From any thread, idempotent."""
        self.process.kill()

    def end(self) -> str:
        """Kill it if need be, close the socket, and say how it ended: ``was killed by signal 9 (SIGKILL)``."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        by_itself = True
        try:
            self.process.wait(1.0)  # it may be on its way
        except subprocess.TimeoutExpired:
            by_itself = False
            self.kill()
            self.process.wait()
        self.connection.close()
        return how_it_ended(self.process.returncode) if by_itself else "did not end by itself and was killed"


def how_it_ended(status: int) -> str:
    """An exit status as ``subprocess`` gives it, in words that follow a name."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"
    return f"was killed by signal {-status} ({number.name}){_HINTS.get(number, '')}"


def start_child(module: str, environment: Mapping[str, str] | None = None) -> ChildProcess:
    """A new interpreter that imports ``module`` and calls its ``main`` with its end of the socket.

    Nothing but that socket, standard output and standard error is inherited, nothing is imported from the working
    directory, and the ``environment`` is what it is told (None: ours; see ``child_environment``). The calling thread
    must live as long as the child: the kernel takes its end for the parent's.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        root = str(Path(__file__).parents[1])
        command = [sys.executable, "-P", "-c", _BOOT, module, str(theirs.fileno()), str(os.getpid()), root]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=None if environment is None else dict(environment),
            )
        except BaseException:
            ours.close()
            raise
    return ChildProcess(process, ours, environment)


def child_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Of ``own`` what a child may know: secrets (LINNET_API_KEY, HF_TOKEN, …) are no business of it."""
    return {name: value for name, value in own.items() if name in _PASSED or name.startswith(_PASSED_FAMILIES)}


def boot() -> None:
    """The child's first words: obey, then become what was asked for."""
    module, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    try:
        main = import_module(module).main
    except Exception as error:
        sys.stderr.write(f"{module} cannot be imported: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    main(connection)


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends. Without that call the end of the socket must do."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before it was asked
        os._exit(1)
