"""The inner half of sandbox.py: a program of its own, started by file name in a bare interpreter (no site packages).

It reads one JSON job from stdin, isolates itself with Linux namespaces and starts the untrusted program there, which
can make only the system calls of the job's filter. The processes are nested: this launcher (its death kills all below),
process 1 of a new process namespace (its end kills whatever the program left behind, and the program cannot signal it),
the program. Ends with SETUP_FAILED and a line on stderr if the kernel refuses any part of the isolation; then the
program is not started.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys

SETUP_FAILED = 70
VERDICT = 3  # the file descriptor that the program's end is reported on
USER = 1000  # inside the user namespace; not 0, so that `exec` drops every capability
NOBODY = 65534
PROCESSES = 16
FOLDER_BYTES = 64 * 2**20

CLONE_FLAGS = 0x10000000 | 0x40000000 | 0x20000000 | 0x00020000 | 0x08000000 | 0x04000000  # user net pid mount ipc uts
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
KEYCTL_JOIN_SESSION_KEYRING = 1
MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1  # the same number on every architecture

# The program and its tests run as one module. The token goes out only after the last test: neither a printed "passed"
# nor an early exit can stand for it.
RUNNER = """
import json, os, sys, types
token, program = json.load(sys.stdin)
module = sys.modules["candidate"] = types.ModuleType("candidate")
os.close(0)
exec(compile(program, "candidate.py", "exec"), module.__dict__)
sys.stdout.flush()
os.write(3, token.encode())
os._exit(0)
"""

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A function of the C library that gives 0; OSError with its name if it does not."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_namespaces() -> None:
    """New namespaces of every kind that matters; the outer user is USER inside (as root: `nobody` is)."""
    me, outer = os.getpid(), [os.geteuid(), os.getegid()]
    if outer[0] == 0:
        outer = [NOBODY, NOBODY]  # root's number of processes has no limit
    ready, go = os.pipe()
    writer = os.fork()
    if writer == 0:  # only a process outside may write the maps
        os.close(go)
        os.read(ready, 1)
        try:
            maps = {"setgroups": "deny", "uid_map": f"{USER} {outer[0]} 1", "gid_map": f"{USER} {outer[1]} 1"}
            for name, text in maps.items():
                with open(f"/proc/{me}/{name}", "w") as handle:
                    handle.write(text)
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(ready)
    try:
        call("unshare", CLONE_FLAGS)
    finally:
        os.close(go)
        status = os.waitpid(writer, 0)[1]
    if status != 0:
        raise OSError("the user of the new namespace cannot be set")
    with open("/proc/sys/user/max_user_namespaces", "w") as handle:
        handle.write("0")  # no namespaces inside, where the program would have capabilities again


def change_root(visible: dict) -> None:  # type: ignore[type-arg]
    """A root in memory that shows `visible`, read-only, an empty folder to write into, and nothing else."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    sources = {path: os.open(path, os.O_PATH) for path in visible["folders"] + visible["files"]}
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    # After a change of user the kernel no longer lets this process read its own /proc/self/fd.
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)
    mount_memory("/tmp", 2**20)
    for path, source in sources.items():
        target = "/tmp" + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if path in visible["folders"]:
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT, 0o444))
        call("mount", f"/proc/self/fd/{source}".encode(), target.encode(), None, MS_BIND | MS_REC, None)
        make_read_only(target, AT_RECURSIVE)
        os.close(source)
    for path in visible["hidden"]:
        mount_memory("/tmp" + path, 2**12, MS_RDONLY)
    for path, goal in visible["links"].items():
        os.makedirs(os.path.dirname("/tmp" + path), exist_ok=True)
        os.symlink(goal, "/tmp" + path)
    os.mkdir("/tmp/folder")
    mount_memory("/tmp/folder", FOLDER_BYTES)
    make_read_only("/tmp", 0)
    os.chdir("/tmp")
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/folder")


def mount_memory(path: str, size: int, flags: int = 0) -> None:
    """An empty folder of at most `size` bytes over the one at `path`."""
    options = f"size={size},nr_inodes=4096,mode=755".encode()
    call("mount", b"none", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV | flags, options)


def make_read_only(path: str, flags: int) -> None:
    """What is mounted at `path`."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, -100, path.encode(), flags, attributes, ctypes.c_size_t(32))


def set_limits(seconds: float, memory_bytes: int) -> None:
    """Sets hard limits, which nothing inside can raise: for each process, and for the number of processes.

    What the folder may hold is memory too, and is taken off. Limits that hold already may be narrower.
    """
    for kind, limit in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, max(0, memory_bytes - FOLDER_BYTES)),
        (resource.RLIMIT_FSIZE, FOLDER_BYTES),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (least, least))


def refuse_calls(code: bytes) -> None:
    """Refuses from now on all system calls but those that the filter `code` allows; this cannot be undone."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(code) // 8, code)), 0, 0)


def start_program(job: dict, source: int) -> None:  # type: ignore[type-arg]
    """Becomes the untrusted program; stdin holds the token and the text, stdout and stderr are one pipe."""
    os.dup2(source, 0)  # first: `source` may be the number of VERDICT
    os.dup2(2, VERDICT)
    os.dup2(1, 2)
    set_limits(job["seconds"], job["memory_bytes"])
    refuse_calls(bytes.fromhex(job["filter"]))
    os.execve(job["python"], [job["python"], "-I", "-S", "-B", "-c", RUNNER], {})


def run(job: dict) -> None:  # type: ignore[type-arg]
    """Sets up the isolation, then waits for the program in it."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.syscall(job["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None)  # not of a kernel that has no keys
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    enter_namespaces()
    change_root(job["visible"])
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # again: changing the user cleared it
    first = os.fork()
    if first != 0:
        if os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == SETUP_FAILED:
            sys.exit(SETUP_FAILED)
        return
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    source, text = os.pipe()
    heard, fault = os.pipe()  # both are closed when the program starts
    program = os.fork()
    if program == 0:
        try:
            os.close(text)
            start_program(job, source)
        except Exception as reason:
            os.write(fault, (str(reason) or type(reason).__name__).encode())
        finally:
            os._exit(1)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program may not look into process 1
    os.close(source)
    os.close(fault)
    with contextlib.suppress(BrokenPipeError), open(text, "wb") as pipe:
        pipe.write(json.dumps([job["token"], job["program"]]).encode())
    if said := os.read(heard, 4096):
        os.write(2, said)
        os._exit(SETUP_FAILED)
    while os.wait()[0] != program:
        pass
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody can wait for a process
    try:
        run(json.load(sys.stdin))
    except (OSError, ValueError) as fault:
        print(fault, file=sys.stderr)
        sys.exit(SETUP_FAILED)
