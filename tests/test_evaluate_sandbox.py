"""What code that a model wrote cannot do: each test is an attack, and what must hold afterwards."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilemoe.evaluate import sandbox
from mobilemoe.evaluate.sandbox import Outcome, SandboxError, run_code, sandbox_strength

try:
    sandbox_strength()
except SandboxError as reason:
    pytest.skip(str(reason), allow_module_level=True)


def attack(program: str, *, seconds: float = 10, memory_bytes: int = 2**28) -> Outcome:
    return run_code(program, seconds=seconds, memory_bytes=memory_bytes)


def processes_with(text: str) -> list[str]:
    """Command lines of this machine's processes that hold `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if text in line]


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def test_a_program_that_comes_to_its_end_passes_and_its_output_is_kept():
    outcome = attack(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nassert A(1).x == 1\nprint('so')"
    )
    assert outcome.passed
    assert outcome.output == "so\n"


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "raise SystemExit(0)",
        "exit(0)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "print('passed'); import os; os._exit(0)",
        "import os; os.write(3, b'passed'); os._exit(0)",
        "import os; os.write(3, b'0' * 32)",
        "import os; os.close(3)",
        "import sys; sys.exit = None; quit()",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_only_the_end_of_the_tests_counts_as_passing(program):
    assert attack(program).failure == "error"


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_it_reaches_no_network_not_even_this_machine(family):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "::1", "1.1.1.1"):
            program = (
                f"import socket\nwith socket.socket(socket.{family}) as s:\n    s.settimeout(2)\n"
                f"    try: s.connect(({host!r}, {port}))\n"
                "    except OSError: pass\n    else: raise SystemExit('connected')"
            )
            assert attack(program).passed, "a connection was made, or the attempt killed the program"
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_it_reaches_no_abstract_socket_of_this_machine():
    with socket.socket(socket.AF_UNIX) as server:
        name = f"\0mobilemoe-{os.getpid()}"
        server.bind(name)
        server.listen()
        assert attack(f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})").failure == "error"


def test_it_sees_and_writes_no_file_but_its_own(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    paths = [
        str(secret),
        "/etc/shadow",
        "/etc/passwd",
        "/proc/1/environ",
        "/sys/kernel",
        "/dev/mem",
        str(Path.home() / ".ssh"),
    ]
    assert attack(f"import os\nassert not any(map(os.path.exists, {paths}))").passed
    assert attack(f"open({str(tmp_path / 'new')!r}, 'w')").failure == "error"
    for path in ("/usr/planted", "/lib/planted", f"{sys.base_prefix}/planted"):
        assert attack(f"open({path!r}, 'w')").failure == "error"
        assert not Path(path).exists()
    assert attack("open('a', 'w').write('x'); assert open('a').read() == 'x'").passed
    assert attack("import os; assert os.listdir('.') == []").passed, "a file of another run is still there"


def test_it_inherits_no_environment_and_no_open_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with (tmp_path / "open").open("w") as handle:
        os.set_inheritable(handle.fileno(), True)
        program = (
            "import os\nassert not {*os.environ} - {'LC_CTYPE'}\nfor fd in [0, *range(4, 64)]:\n"
            "    try: os.fstat(fd)\n    except OSError: continue\n    raise SystemExit(fd)"
        )
        outcome = attack(program)
    assert outcome.passed, outcome.output


def test_it_gets_no_capability_and_no_namespace_where_it_would():
    program = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nassert os.getuid() != 0\n"
        "for flags in (0x10000000, 0x10000000 | 0x00020000, 0x00020000): assert libc.unshare(flags) != 0\n"
        "assert libc.mount(b'none', b'/folder', b'tmpfs', 0, None) != 0\n"
        "assert libc.umount2(b'/usr', 2) != 0\nassert libc.chroot(b'/usr') != 0\n"
        "assert libc.sethostname(b'x', 1) != 0\n"
        "for root in ('/proc', '/..'): assert not os.path.exists(root + '/1/root')"
    )
    outcome = attack(program)
    assert outcome.passed, outcome.output


def test_a_memory_bomb_ends_itself():
    outcome = attack("x = []\nwhile True: x.append(bytearray(2**24))", memory_bytes=2**28)
    assert outcome.failure == "error"
    assert "MemoryError" in outcome.output


def test_files_have_a_limit_together():
    program = "for i in range(10):\n    with open(str(i), 'wb') as f: f.write(bytes(2**24))"
    assert "No space left" in attack(program).output


def test_an_endless_loop_and_sleep_end_in_time():
    for program in (
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nfor s in range(1, 32):\n    "
        "try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(60)",
    ):
        outcome = attack(program, seconds=0.7)
        assert outcome.failure == "time"
        assert outcome.seconds < 3


def test_too_much_output_ends_it_and_is_not_kept():
    outcome = attack("while True: print('x' * 4096)")
    assert outcome.failure == "output"
    assert len(outcome.output) <= sandbox.MAX_OUTPUT_BYTES


def test_a_fork_bomb_stays_small_and_ends():
    program = (
        "import os\nmade = 0\ntry:\n    for _ in range(1000):\n        if os.fork() == 0:\n"
        "            import time; time.sleep(60)\n        made += 1\nexcept BlockingIOError: pass\n"
        "print(made)\nassert made < 20"
    )
    outcome = attack(program)
    assert outcome.passed, outcome.output
    assert attack("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", seconds=1).failure == "time"


def test_no_child_outlives_it_however_it_hides():
    mark, python = f"mark-{os.getpid()}", os.path.realpath(sys.executable)
    program = (
        "import ctypes, os, sys, time\nctypes.CDLL(None).prctl(1, 0)\nif os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0:\n        ctypes.CDLL(None).prctl(1, 0)\n        open('hidden', 'w')\n"
        "        os.closerange(0, 64)\n"
        f"        os.execv({python!r}, ['python', '-S', '-c', 'import time; time.sleep(60)', {mark!r}])\n"
        "    os._exit(0)\n"
    )
    for ending, failure in (
        ("time.sleep(0.4); assert os.path.exists('hidden')", None),
        ("time.sleep(60)", "time"),
        ("os._exit(0)", "error"),
    ):
        outcome = attack(program + ending, seconds=2)
        assert outcome.failure == failure, outcome.output
        assert wait_until(lambda: not processes_with(mark), 2)


def test_it_cannot_kill_or_touch_what_is_above_it():
    program = (
        "import os, signal\nassert os.getppid() == 1\n"
        "for pid in (1, -1):\n    try: os.kill(pid, signal.SIGKILL)\n    except OSError: pass\n"
        "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) != 0"
    )
    outcome = attack(program)
    assert outcome.passed, outcome.output


def test_the_end_of_this_process_ends_the_program():
    mark = f"mark-{os.getpid()}-alone"
    python = os.path.realpath(sys.executable)
    inner = f"import os; os.execv({python!r}, ['walled', '-S', '-c', 'import time; time.sleep(60)', {mark!r}])"
    script = f"from mobilemoe.evaluate.sandbox import run_code\nrun_code({inner!r}, seconds=60, memory_bytes=2**28)"
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        is_started = wait_until(lambda: any(line.startswith("walled\0") for line in processes_with(mark)), 10)
        parent.kill()
    assert is_started
    assert wait_until(lambda: not processes_with(mark), 2)


def test_where_the_walls_cannot_be_built_nothing_runs(monkeypatch, tmp_path):
    failing = tmp_path / "inside.py"
    failing.write_text("import sys; sys.stderr.write('unshare: Operation not permitted'); sys.exit(70)")
    monkeypatch.setattr(sandbox.sandbox_inside, "__file__", str(failing))
    with pytest.raises(SandboxError, match=r"\(unshare: Operation not permitted\): allow unprivileged user namespaces"):
        attack("pass")


def test_other_systems_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="Linux namespaces, which darwin lacks"):
        attack("pass")
