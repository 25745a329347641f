"""The system calls that a program in the sandbox may make, as a filter for the kernel (seccomp, in classic BPF).

The list is closed: files, memory, signals, time, threads, processes and sockets of this machine's own kind (AF_UNIX).
Every other call fails as if the kernel did not have it: networks of every family, io_uring, keys, ptrace, bpf,
userfaultfd, perf, memory that no limit counts (memfd, System V), namespaces, mounts, modules, and calls of later
kernels. Calls through the 32-bit entries, whose numbers mean something else, end the program.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

# name:number on x86-64:number on aarch64, as in the kernel's own headers
_ALLOWED = """
read:0:63 write:1:64 close:3:57 fstat:5:80 lseek:8:62 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66
preadv:295:69 pwritev:296:70 preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 stat:4:- lstat:6:-
newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:- faccessat:269:48 faccessat2:439:439
getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:- rename:82:-
renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 unlink:87:- unlinkat:263:35 symlink:88:- symlinkat:266:36
readlink:89:- readlinkat:267:78 creat:85:- truncate:76:45 ftruncate:77:46 fallocate:285:47 fadvise64:221:223
fsync:74:82 fdatasync:75:83 flock:73:32 chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 utime:132:-
utimes:235:- utimensat:280:88 umask:95:166 listxattr:194:11 llistxattr:195:12 flistxattr:196:13 getxattr:191:8
lgetxattr:192:9 fgetxattr:193:10 fcntl:72:25 ioctl:16:29 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59
eventfd:284:- eventfd2:290:19 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 sendfile:40:71
copy_file_range:326:285 close_range:436:436 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 brk:12:214
madvise:28:233 msync:26:227 mincore:27:232 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133 rt_sigqueueinfo:129:138 sigaltstack:131:132
restart_syscall:219:128 pause:34:- alarm:37:- setitimer:38:103 getitimer:36:102 kill:62:129 tkill:200:130
tgkill:234:131 fork:57:- vfork:58:- execve:59:221 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95
getpid:39:172 getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgid:121:155 getpgrp:111:- setpgid:109:154 getsid:124:156
setsid:112:157 getrusage:98:165 times:100:153 getrlimit:97:163 setrlimit:160:164 prlimit64:302:261 getpriority:140:141
sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 getcpu:309:168 arch_prctl:158:- prctl:157:167
set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 membarrier:324:283 futex:202:98
capget:125:90 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169
time:201:- getrandom:318:278 uname:63:160 sysinfo:99:179 connect:42:203 accept:43:202 accept4:288:242 bind:49:200
listen:50:201 getsockname:51:204 getpeername:52:205 setsockopt:54:208 getsockopt:55:209 sendto:44:206 recvfrom:45:207
sendmsg:46:211 recvmsg:47:212 sendmmsg:307:269 recvmmsg:299:243 shutdown:48:210
"""
# The first argument of these is looked at.
_SOCKETS = {"x86_64": (41, 53), "aarch64": (198, 199)}  # socket, socketpair
_CLONE = {"x86_64": 56, "aarch64": 220}  # clone3 hides its flags behind a pointer: without it, libraries take this one
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_...

_AF_UNIX = 1
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

# Codes of classic BPF, and where it finds a call: struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6];}
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # the low half of the argument: both machines are little-endian
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_ALLOW, KILL_PROCESS, ERRNO + number


@dataclass(frozen=True)
class Calls:
    """One kind of machine: the filter as an array of struct sock_filter, and the number of the call keyctl."""

    filter: bytes
    keyctl: int


def allowed_numbers(machine: str) -> dict[str, int]:
    """The calls that are allowed whatever their arguments, by name; `machine` is that of `platform.machine`."""
    column = ("x86_64", "aarch64").index(machine) + 1
    entries = [entry.split(":") for entry in _ALLOWED.split()]
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}


def calls_of(machine: str) -> Calls | None:
    """What `machine` needs; None for one whose calls are not known here."""
    if machine not in _ARCHITECTURES:
        return None
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in allowed_numbers(machine).values():
        code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number in _SOCKETS[machine]:
        code += [
            (_IF_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_IF_EQUAL, 0, 1, _AF_UNIX),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT),
        ]
    code += [
        (_IF_EQUAL, 0, 4, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_IF_ANY_BIT, 1, 0, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]
    return Calls(b"".join(struct.pack("=HBBI", *each) for each in code), _KEYCTL[machine])
