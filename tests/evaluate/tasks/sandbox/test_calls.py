"""What code that a model wrote cannot ask of the kernel: any family of sockets and any call that it has no need of."""

import ctypes
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mobilemoe.evaluate.tasks.sandbox import run as sandbox
from mobilemoe.evaluate.tasks.sandbox.calls import allowed_numbers
from sandbox_attacks import attack

FAMILIES = [
    number
    for number in {*range(64), 255, *(int(f) for f in socket.AddressFamily)}  # more than any kernel has
    if number != socket.AF_UNIX
]


def test_it_gets_sockets_of_no_family_but_its_own():
    kinds = "(socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)"
    outcome = attack(
        f"import errno, socket\nfor family in {sorted(FAMILIES)}:\n    for kind in {kinds}:\n"
        "        for make in (socket.socket, socket.socketpair):\n"
        "            try: made = make(family, kind)\n"
        "            except OSError as fault: assert fault.errno == errno.EAFNOSUPPORT, fault\n"
        "            else: raise SystemExit(made)\n"
        "ours, theirs = socket.socketpair()\nours.send(b'x')\nassert theirs.recv(1) == b'x'"
    )
    assert outcome.passed, outcome.output


# Names and numbers of some calls that must fail: (x86-64, aarch64), as in the kernel's headers.
REFUSED = {
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "userfaultfd": (323, 282), "bpf": (321, 280), "perf_event_open": (298, 241), "seccomp": (317, 277),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "semget": (64, 190), "semop": (65, 193), "mq_open": (240, 180),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435), "personality": (135, 92),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116),
    "swapon": (167, 224), "acct": (163, 89), "quotactl": (179, 60), "sethostname": (170, 161),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "iopl": (172, 0),
    "setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147), "setgroups": (116, 159), "capset": (126, 91),
    "mknodat": (259, 33), "landlock_create_ruleset": (444, 444), "a call of later kernels": (999, 999),
}  # fmt: skip
COLUMN = {"x86_64": 0, "aarch64": 1}[platform.machine()]


def test_calls_that_no_program_needs_fail():
    numbers = {name: pair[COLUMN] for name, pair in REFUSED.items() if pair[COLUMN]}
    assert not {*numbers.values()} & {*allowed_numbers(platform.machine()).values()}
    outcome = attack(
        f"import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nfor name, number in {numbers}.items():\n"
        "    ctypes.set_errno(0)\n    assert libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1, name\n"
        "    assert ctypes.get_errno() == errno.ENOSYS, (name, ctypes.get_errno())"
    )
    assert outcome.passed, outcome.output


def test_new_namespaces_are_refused_to_clone_too():
    outcome = attack(
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):\n"
        f"    assert libc.syscall({(56, 220)[COLUMN]}, bit | 17, 0, 0, 0, 0) == -1\n"
        "    assert ctypes.get_errno() == errno.EPERM"
    )
    assert outcome.passed, outcome.output


@pytest.mark.skipif(COLUMN != 0, reason="code for x86-64")
def test_calls_through_the_entries_of_32_bit_programs_end_it():
    run = "import ctypes, mmap\nplace = mmap.mmap(-1, 4096, prot=7)\nplace.write({code!r})\n"
    run += "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(place)))\n"
    getpid_i386 = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    getpid_x32 = b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"  # mov eax, 0x40000000 + 39; syscall; ret
    getpid = b"\xb8\x27\x00\x00\x00\x0f\x05\xc3"
    assert attack(run.format(code=getpid) + "import os\nassert call() == os.getpid()").passed
    assert attack(run.format(code=getpid_i386) + "call()").failure == "error"
    outcome = attack(run.format(code=getpid_x32) + "assert call() < 0")
    assert outcome.passed, outcome.output


def test_the_numbers_of_calls_are_those_of_the_kernel_headers():
    headers = {
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "/usr/include/asm-generic/unistd.h",
    }
    if not any(Path(header).exists() for header in headers.values()):
        pytest.skip("this machine has no kernel headers")
    for column, (machine, header) in enumerate(headers.items()):
        if not Path(header).exists():
            continue
        text = Path(header).read_text()
        found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", text)}
        found["newfstatat"] = found.get("newfstatat", found.get("fstatat"))
        refused = {name: pair[column] for name, pair in REFUSED.items() if pair[column]}
        ours = {**allowed_numbers(machine), **refused}
        assert len(ours.keys() & found.keys()) > 0.9 * len(ours)
        for name in ours.keys() & found.keys():
            assert ours[name] == found[name], (machine, name)


def test_it_has_a_session_keyring_of_its_own_and_no_call_to_reach_one():
    """Without the filter, too: a key of whoever runs the evaluation is not in the keyring of the sandbox."""
    libc = ctypes.CDLL(None, use_errno=True)
    add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
    key = libc.syscall(add_key, b"user", b"mobilemoe-secret", b"mine", 4, -3)
    if key < 0:
        pytest.skip("this kernel gives us no key to lose")
    script = (
        "import ctypes, sys\nsys.path.insert(0, sys.argv[1])\nimport inside\n"
        "keyctl, search = int(sys.argv[2]), (10, -3, b'user', b'mobilemoe-secret', 0)\n"
        "def instead():\n    print(ctypes.CDLL(None).syscall(keyctl, *search))\n    sys.exit()\n"
        "inside.enter_namespaces = instead\ninside.run({'keyctl': keyctl})"
    )
    folder = str(Path(sandbox.inside.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, folder, str(keyctl)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == -1
    search = f"import ctypes; assert ctypes.CDLL(None).syscall({keyctl}, 10, -3, b'user', b'mobilemoe-secret', 0) == -1"
    assert attack(search).passed
    libc.syscall(keyctl, 3, key)  # revoked
