"""`python -m embedded.leash GRACE_S PIPE_FD[,LOCK_FD] COMMAND…`: a command on a leash.

The process forks a watcher and then becomes the command. The watcher reads a pipe whose other end
only the launcher holds: however the launcher ends, `kill -9` included, the pipe ends with it. The
watcher then asks the command to stop (SIGTERM, so that a worker can give its job back) and after
the grace time kills the whole process group. It does the same for what a command leaves behind when
it dies on its own.

A pipe rather than Linux's PR_SET_PDEATHSIG: that signal reaches the direct child only, cannot
follow a refused SIGTERM by a SIGKILL, and does not exist on other systems.
"""

import os
import signal
import sys
import time

_POLL_S = 0.05


def main(arguments: list[str]) -> None:
    """Fork the watcher and become the command; the caller has made this process a group leader."""
    grace_s = float(arguments[0])
    pipe_fd, *lock_fds = (int(fd) for fd in arguments[1].split(","))
    command = arguments[2:]
    command_pid = os.getpid()
    if os.fork() == 0:
        _watch(pipe_fd, command_pid, grace_s)
    # The watcher keeps the lock as well: the data directory is busy until the whole group is gone.
    for fd in (pipe_fd, *lock_fds):
        os.close(fd)
    os.execvp(command[0], command)  # noqa: S606 - the launcher's own command line


def _watch(pipe_fd: int, command_pid: int, grace_s: float) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(pipe_fd, 1):
        pass
    if os.getppid() == command_pid:
        os.kill(command_pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while os.getppid() == command_pid and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    os.killpg(0, signal.SIGKILL)  # itself too


if __name__ == "__main__":
    main(sys.argv[1:])
