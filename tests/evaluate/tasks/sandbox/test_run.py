"""What code that a model wrote cannot do: each test is an attack, and what must hold afterwards."""

import ast
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.tasks.sandbox import run as sandbox
from mobilemoe.evaluate.tasks.sandbox.calls import calls_of
from mobilemoe.evaluate.tasks.sandbox.files import visible_files
from mobilemoe.evaluate.tasks.sandbox.run import Outcome, SandboxError, sandbox_strength
from sandbox_attacks import attack


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


def test_it_reaches_no_network_not_even_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "1.1.1.1"):
            program = f"import socket; socket.create_connection(({host!r}, {port}), timeout=2)"
            assert "Address family not supported" in attack(program).output
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
    for path in ("/planted", "/usr/planted", "/lib/planted", f"{sys.base_prefix}/planted", f"{os.__file__}.planted"):
        assert attack(f"open({path!r}, 'w')").failure == "error"
        assert not Path(path).exists()
    assert attack("open('a', 'w').write('x'); assert open('a').read() == 'x'").passed
    assert attack("import os; assert os.listdir('.') == []").passed, "a file of another run is still there"


def test_of_this_machine_it_sees_the_interpreter_alone():
    """Not what else lies in /usr, or in the folder that Python is installed in, be it somebody's home."""
    listed = attack(
        "import os\nfor folder, names, files in os.walk('/'):\n"
        "    if folder == os.path.dirname(os.__file__): names[:] = ['site-packages']\n"
        "    for name in files: print(os.path.join(folder, name))"
    ).output.splitlines()
    python = os.path.realpath(sys.executable)
    assert python in listed
    standard = os.path.dirname(os.path.realpath(os.__file__))
    others = [path for path in listed if path != python and not path.startswith(standard + "/")]
    assert len(others) < 100
    assert all(".so" in os.path.basename(path) for path in others), others
    assert not any("-packages/" in path for path in listed)


def test_an_interpreter_in_a_home_shows_nothing_else_of_it(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".env").write_text("TOKEN=secret")
    (home / "lib").symlink_to(Path(sys.base_prefix) / "lib")
    found = visible_files(os.path.realpath(sys.executable))
    assert not any(Path(sys.base_prefix) == Path(path) for path in (*found.files, *found.folders))
    for secret in (
        home / ".env",
        Path(sys.base_prefix) / "bin",
        Path("/usr/bin"),
        Path("/usr/src"),
        Path("/usr/share"),
    ):
        listing = f"import os\nprint(os.listdir({str(secret)!r}) if os.path.isdir({str(secret)!r}) else [])"
        assert set(ast.literal_eval(attack(listing).output)) <= {os.path.basename(os.path.realpath(sys.executable))}


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


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfd = os.memfd_create('x')",
        "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 2**24))\n    x[-1].write(b'x' * 2**24)",
        "import mmap\nwith open('a', 'wb') as f: f.truncate(2**40)",
        "import ctypes\nassert ctypes.CDLL(None).shmget(0, 2**28, 0o1600) != -1",
        "x = bytes(200 * 2**20)",  # with the folder's 64 MiB it is more than 256
    ],
)
def test_no_other_memory_escapes_the_limit(program):
    assert attack(program, memory_bytes=2**28).failure == "error"


def test_files_have_a_limit_together():
    program = "for i in range(10):\n    with open(str(i), 'wb') as f: f.write(bytes(2**24))"
    assert "No space left" in attack(program).output


def test_an_endless_loop_and_sleep_end_in_time():
    for program in (
        "while True: pass",
        "import time; time.sleep(600)",
        "import signal, time\nfor s in range(1, 32):\n    "
        "try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(600)",
    ):
        outcome = attack(program, seconds=0.7)
        assert outcome.failure == "time"
        assert outcome.seconds < 30


def test_too_much_output_ends_it_and_is_not_kept():
    outcome = attack("while True: print('x' * 4096)")
    assert outcome.failure == "output"
    assert len(outcome.output) <= sandbox.MAX_OUTPUT_BYTES


def test_a_fork_bomb_stays_small_and_ends():
    program = (
        "import os\nmade = 0\ntry:\n    for _ in range(1000):\n        if os.fork() == 0:\n"
        "            import time; time.sleep(600)\n        made += 1\nexcept BlockingIOError: pass\n"
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
        f"        os.execv({python!r}, ['python', '-S', '-c', 'import time; time.sleep(600)', {mark!r}])\n"
        "    os._exit(0)\n"
    )
    for ending, failure, seconds in (
        ("while not os.path.exists('hidden'): time.sleep(0.01)", None, 60),
        ("time.sleep(600)", "time", 2),
        ("os._exit(0)", "error", 60),
    ):
        outcome = attack(program + ending, seconds=seconds)
        assert outcome.failure == failure, outcome.output
        assert wait_until(lambda: not processes_with(mark), 60)


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
    inner = f"import os; os.execv({python!r}, ['walled', '-S', '-c', 'import time; time.sleep(600)', {mark!r}])"
    script = (
        "from mobilemoe.evaluate.tasks.sandbox.run import run_code\n"
        f"run_code({inner!r}, seconds=600, memory_bytes=2**28)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        is_started = wait_until(lambda: any(line.startswith("walled\0") for line in processes_with(mark)), 60)
        parent.kill()
    assert is_started
    assert wait_until(lambda: not processes_with(mark), 60)


def test_where_the_walls_cannot_be_built_nothing_runs(monkeypatch, tmp_path):
    failing = tmp_path / "inside.py"
    failing.write_text("import sys; sys.stderr.write('unshare: Operation not permitted'); sys.exit(70)")
    monkeypatch.setattr(sandbox.inside, "__file__", str(failing))
    with pytest.raises(SandboxError, match=r"\(unshare: Operation not permitted\): allow unprivileged user namespaces"):
        attack("pass")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))", "Too many open files"),
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))", "File too large"),
        ("resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))", ""),
        ("resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))", None),
        ("os.environ['TMPDIR'] = '/nowhere'; tempfile.tempdir = None", None),
        ("os.chdir('/'); os.environ.clear()", None),
    ],
)
def test_where_it_cannot_work_it_says_so_before_anything_is_scored(harm, words, tmp_path):
    """`words` of the reason, None where it works all the same."""
    script = (
        "import os, resource, sys, tempfile\n"
        "from mobilemoe.evaluate.tasks.sandbox.run import SandboxError, sandbox_strength\n"
        f"{harm}\ntry: print(sandbox_strength())\nexcept SandboxError as reason: print('refused:', reason)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    if words is None:
        assert done.stdout.startswith("Linux namespaces"), done.stdout
    else:
        assert done.stdout.startswith("refused: generated code cannot be walled in")
        assert words in done.stdout


@pytest.mark.parametrize("program", ["assert 1 + 1 == 3", "import socket"])
def test_a_sandbox_that_lets_all_pass_or_none_is_not_used(monkeypatch, program):
    ended = None if program.startswith("assert") else "error"
    monkeypatch.setattr(sandbox, "run_code", lambda *_, **__: Outcome(ended, "why", 0.1))
    sandbox_strength.cache_clear()
    with pytest.raises(SandboxError, match="ended otherwise: why"):
        sandbox_strength()


def test_a_program_that_the_kernel_does_not_start_is_no_failed_solution(monkeypatch):
    monkeypatch.setattr(sandbox, "calls_of", lambda machine: replace(calls_of(machine), filter=b""))
    with pytest.raises(SandboxError, match="prctl: Invalid argument"):
        attack("pass")


def test_other_systems_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="Linux namespaces, which darwin lacks"):
        attack("pass")
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxError, match="Linux namespaces, which riscv64 lacks"):
        attack("pass")


@pytest.mark.parametrize(
    ("seconds", "memory_bytes"), [(0, 2**29), (float("nan"), 2**29), (float("inf"), 2**29), (9, 0), (9, 2**70)]
)
def test_limits_that_are_none_are_refused_before_a_program_is_called_wrong(seconds, memory_bytes):
    with pytest.raises(UsageError, match=r"are no limits for a program"):
        sandbox.run_code("pass", seconds=seconds, memory_bytes=memory_bytes)


def test_a_right_program_is_right_where_the_ends_of_processes_are_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert sandbox.run_code("assert 1 + 1 == 2", seconds=20, memory_bytes=2**29).passed
        assert sandbox.run_code("assert 1 + 1 == 3", seconds=20, memory_bytes=2**29).failure == "error"
    finally:
        signal.signal(signal.SIGCHLD, before)
