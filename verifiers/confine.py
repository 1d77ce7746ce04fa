"""Confines an untrusted program, and the tests, which come from a file. Each protection but the
limits is tried in a child process before it is relied on, and the worker (worker.py) reports which
of them work.

  private root    a root directory with Python, its shared libraries and NumPy, read-only, and a
                  scratch tmpfs of 64 MiB: no secrets, no answers, no /proc, no disk to fill
  namespaces      no network, no shared memory or message queues of other processes
  Landlock        the same file access, enforced by another part of the kernel; no TCP, no abstract
                  sockets, no signals to others
  seccomp         an allow list of system calls: no process, program, signal, socket, mount, …
  user id         one of its own, so that file permissions and the limit on threads hold for root
  limits          memory, CPU time, file size, open files, threads

The runner cannot fork, so one SIGKILL ends it. This takes seccomp, which is therefore required; the
rest adds to it. Without a private root a program cannot write files; without Landlock as well it
cannot open any. The tester may open files, but never write any.
"""

import ctypes
import errno
import functools
import glob
import os
import resource
import signal
import struct
import sys
import sysconfig
from typing import NamedTuple

SCRATCH = "/scratch"  # inside the private root
SCRATCH_LIMITS = "size=64m,nr_inodes=4096,mode=1777"
THREADS, FILES = 64, 64
LIMITS = {
    "RLIMIT_AS": 1 << 30,
    "RLIMIT_FSIZE": 4 << 20,
    "RLIMIT_NOFILE": FILES,
    "RLIMIT_CORE": 0,
    "RLIMIT_STACK": 64 << 20,  # for deep recursion through C
}


class Box(NamedTuple):
    """The protections that the worker found to work; the runner and the tester apply them."""

    filter: bytes | None  # compiled seccomp filter of the runner
    tests_filter: bytes | None  # compiled seccomp filter of the tester
    ruleset: int | None  # open file of the Landlock ruleset
    uid: int | None  # user id of the runner and the tester
    capabilities: int  # capabilities kept: at most the right to read a Python in another's home
    scratch: str  # working directory
    threads: int  # RLIMIT_NPROC


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def libc_call(name: str, *args) -> int:
    """The result of a C function; raises OSError if it is −1."""
    if (result := getattr(libc(), name)(*args)) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def set_limit(name: str, value: int) -> None:
    """Lowers a resource limit irrevocably; never raises it."""
    hard = resource.getrlimit(getattr(resource, name))[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(getattr(resource, name), (value, value))


def enter_box(box: Box) -> None:
    """Applies all protections except the seccomp filter, which would forbid applying the others."""
    os.chdir(box.scratch)
    set_limit("RLIMIT_NPROC", box.threads)
    drop_rights(box.uid, box.capabilities)
    if box.ruleset is not None:
        restrict_files(box.ruleset)


def die_with(parent: int) -> None:
    """Asks for SIGKILL when the worker is gone; to be called after a change of the user id, which
    makes the kernel forget it."""
    if sys.platform == "linux":
        libc_call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def drop_rights(uid: int | None, capabilities: int) -> None:
    """Changes to another user and group, if one is given, and drops all other capabilities."""
    if uid is not None:
        libc_call("prctl", 8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS, so that the next call decides
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
        sets = struct.pack("=6I", capabilities, capabilities, 0, 0, 0, 0)
        libc_call("capset", header, sets)


# ---- seccomp ----

# Name, number on x86_64, number on aarch64 (- where it has none).
CALLS = """
read 0 63 write 1 64 readv 19 65 writev 20 66 pread64 17 67 pwrite64 18 68 close 3 57
close_range 436 436 fstat 5 80 stat 4 - lstat 6 - newfstatat 262 79 statx 332 291 lseek 8 62
mmap 9 222 mprotect 10 226 munmap 11 215 brk 12 214 mremap 25 216 madvise 28 233
rt_sigaction 13 134 rt_sigprocmask 14 135 rt_sigreturn 15 139 sigaltstack 131 132
access 21 - faccessat 269 48 faccessat2 439 439 getcwd 79 17 chdir 80 49 fchdir 81 50
getdents64 217 61 readlink 89 - readlinkat 267 78 statfs 137 43 fstatfs 138 44 umask 95 166
pipe 22 - pipe2 293 59 dup 32 23 dup2 33 - dup3 292 24 select 23 - pselect6 270 72 poll 7 -
ppoll 271 73 epoll_create 213 - epoll_create1 291 20 epoll_ctl 233 21 epoll_wait 232 -
epoll_pwait 281 22 epoll_pwait2 441 441 eventfd2 290 19 sendto 44 206 recvfrom 45 207
sendmsg 46 211 recvmsg 47 212 shutdown 48 210 getsockopt 55 209
getsockname 51 204 getpeername 52 205 alarm 37 - pause 34 - setitimer 38 103 getitimer 36 102
nanosleep 35 101 clock_nanosleep 230 115 clock_gettime 228 113 clock_getres 229 114
gettimeofday 96 169 time 201 - times 100 153 getcpu 309 168 sched_yield 24 124
sched_getaffinity 204 123 sched_getparam 143 121 sched_getscheduler 145 120 futex 202 98
set_robust_list 273 99 get_robust_list 274 100 set_tid_address 218 96 rseq 334 293
membarrier 324 283 arch_prctl 158 - getrandom 318 278 restart_syscall 219 128 exit 60 93
exit_group 231 94 getpid 39 172 gettid 186 178 getppid 110 173 getuid 102 174 geteuid 107 175
getgid 104 176 getegid 108 177 getgroups 115 158 getresuid 118 148 getresgid 120 150
getpgrp 111 - getpgid 121 155 getsid 124 156 getrusage 98 165 getrlimit 97 163 sysinfo 99 179
uname 63 160 clone 56 220 prlimit64 302 261 socketpair 53 199 prctl 157 167 fcntl 72 25
ioctl 16 29 open 2 - openat 257 56
"""
# These change files, and are allowed where only the scratch can be changed.
CHANGES = """
mkdir 83 - mkdirat 258 34 rmdir 84 - unlink 87 - unlinkat 263 35 rename 82 - renameat 264 38
renameat2 316 276 link 86 - linkat 265 37 symlink 88 - symlinkat 266 36 truncate 76 45
ftruncate 77 46 fallocate 285 47 chmod 90 - fchmod 91 52 fchmodat 268 53 utimensat 280 88
fsync 74 82 fdatasync 75 83 flock 73 32 sendfile 40 71 copy_file_range 326 285 creat 85 -
"""
# Call → conditions on its arguments: (number, mask, the values allowed under the mask).
WHOLE = 0xFFFFFFFF
ARGUMENTS = {
    "clone": [(0, 0x7E030000, [0x10000])],  # CLONE_THREAD and no new namespace
    "prlimit64": [(0, WHOLE, [0])],  # limits of its own process only
    # asyncio's loop wakes itself through a pair of AF_UNIX stream sockets. Datagram sockets could
    # also send to other processes' sockets, by name.
    "socketpair": [(0, WHOLE, [1]), (1, 0xF, [1])],
    "prctl": [(0, WHOLE, [15, 16])],  # a thread's name
    "fcntl": [(1, WHOLE, [0, 1, 2, 3, 4, 5, 6, 7, 1030])],  # dup, flags and locks; no owner
    "ioctl": [(1, WHOLE, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451])],  # isatty, cloexec, …
}
WRITE_FLAGS = 0o1103  # the flags of open() that write, create or truncate
OPENING = {"open": [(1, WRITE_FLAGS, [0])], "openat": [(2, WRITE_FLAGS, [0])]}


def call_filter(may_open: bool, may_write: bool, may_thread: bool) -> bytes | None:
    """The seccomp filter as classic BPF; None on machines other than the two in the tables.

    A forbidden call fails as if the kernel lacked it (ENOSYS), so that glibc falls back from clone3
    to clone. A forbidden open fails as if by permissions (EACCES), so that a failing import is an
    ImportError. A call of another architecture, where numbers differ, kills the process.
    """
    machine = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}.get(os.uname().machine)
    if machine is None or sys.maxsize < 1 << 32:
        return None
    audit, column = machine
    kill, allow, fail = 0x80000000, 0x7FFF0000, 0x00050000
    load, equal, at_least, mask, end = 0x20, 0x15, 0x35, 0x54, 0x06
    words = (CALLS + (CHANGES if may_write else "")).split()
    rules = ARGUMENTS | ({} if may_write else OPENING)
    denied = (set() if may_open else set(OPENING)) | (set() if may_thread else {"clone"})
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (end, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 1 << 30), (end, 0, 0, kill)]  # x32's numbers begin there
    for name, *numbers in zip(words[::3], words[1::3], words[2::3]):
        if numbers[column - 1] == "-":
            continue
        refuse = (end, 0, 0, fail | (errno.EACCES if name in OPENING else errno.ENOSYS))
        body = []
        for argument, relevant, values in rules.get(name, []):
            body += [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, relevant)]
            body += [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
            body += [refuse]
        body += [refuse if name in denied else (end, 0, 0, allow)]
        code += [(equal, 0, len(body), int(numbers[column - 1])), *body]
    code += [(end, 0, 0, fail | errno.ENOSYS)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def forbid_calls(code: bytes | None) -> None:
    """Installs the filter in this process, irrevocably."""
    if code is None:  # only where the caller allowed an unsafe sandbox
        return
    libc_call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    libc_call("prctl", 22, 2, program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# ---- Landlock ----


class Paths(NamedTuple):
    """The paths that a program may read, beside its scratch folder."""

    readable: list[str]  # Python, and the shared libraries that its modules load
    hidden: list[str]  # folders of installed packages in there: some hold a benchmark's answers
    libraries: list[str]  # packages in those folders that may be read after all


def landlock_rules(paths: Paths, scratch: str | None) -> int:
    """A Landlock ruleset (an open file) that allows to read `paths` and to change only the scratch.

    Landlock can only add rights below a path. So a folder that contains a hidden one is replaced by
    its entries.
    """
    readable, listable = set(paths.libraries), {os.path.dirname(path) for path in paths.libraries}
    hidden = {os.path.realpath(path) for path in paths.hidden}
    queue = [os.path.realpath(path) for path in paths.readable]
    while queue:
        path = queue.pop()
        if any(folder.startswith(f"{path}/") for folder in hidden):
            listable.add(path)  # Python looks for modules by listing
            queue += [os.path.realpath(entry.path) for entry in os.scandir(path)]
        elif path not in hidden and os.path.exists(path):
            readable.add(path)
    abi = libc_call("syscall", 444, None, 0, 1)  # landlock_create_ruleset: its version
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    no_tcp = 3 if abi >= 4 else 0
    no_signals_or_abstract_sockets = 3 if abi >= 6 else 0
    handled = struct.pack("=QQQ", everything, no_tcp, no_signals_or_abstract_sockets)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = libc_call("syscall", 444, handled, size, 0)
    execute, write, read, listing, truncate = 1, 2, 4, 8, 1 << 14
    rights = [(path, execute | read | listing) for path in readable]
    rights += [(path, listing) for path in listable]
    rights += [("/dev/null", write | truncate)] + ([(scratch, everything)] if scratch else [])
    for path, allowed in rights:
        if not os.path.isdir(path):
            allowed &= execute | write | read | truncate
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed & everything, fd)
        libc_call("syscall", 445, ruleset, 1, rule, 0)  # landlock_add_rule, path beneath
        os.close(fd)
    return ruleset


def restrict_files(ruleset: int) -> None:
    libc_call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc_call("syscall", 446, ruleset, 0)  # landlock_restrict_self


# ---- namespaces, private root ----

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
LOCKED = MS_NOSUID | MS_NODEV | MS_NOEXEC  # mount flags that a user namespace may not drop


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [word and word.encode() for word in (source, target, kind)]
    libc_call("mount", *words, ctypes.c_ulong(flags), options.encode())


def bind_read_only(path: str, root: str) -> None:
    """Mounts a file or folder read-only at the same path under another root."""
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        open(root + path, "x").close()
    mount(path, root + path, None, MS_BIND | MS_REC)
    flags = os.statvfs(path).f_flag & LOCKED
    mount(None, root + path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)
    attributes = struct.pack("=4Q", 1, 0, 0, 0)  # MOUNT_ATTR_RDONLY
    try:  # mount_setattr, AT_RECURSIVE: also for mounts below the path
        libc_call("syscall", 442, -1, (root + path).encode(), 0x8000, attributes, 32)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # Linux before 5.12
            raise


def enter_namespaces() -> None:
    """Enters new namespaces for network, mounts, IPC and host name. Without root this needs a user
    namespace, too, in which the user stays the same."""
    uid, gid = os.getuid(), os.getgid()
    new_user = CLONE_NEWUSER if uid else 0
    libc_call("unshare", new_user | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS)
    if new_user:
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def enter_private_root(paths: Paths) -> None:
    """Enters namespaces, and in them a root directory with only these paths and the scratch.

    The root is built over /proc, which exists on every system and contains none of these paths.
    """
    enter_namespaces()
    root = "/proc"
    plain = MS_NOSUID | MS_NODEV
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", plain, "size=1m,mode=755")
    for path in paths.readable:
        bind_read_only(path, root)
    for path in paths.hidden:
        mount("tmpfs", root + path, "tmpfs", plain, "size=1m,mode=755")
    for path in paths.libraries:
        bind_read_only(path, root)
    os.mkdir(root + SCRATCH)
    mount("tmpfs", root + SCRATCH, "tmpfs", plain | MS_NOEXEC, SCRATCH_LIMITS)
    os.chdir(root)
    libc_call("syscall", {"x86_64": 155, "aarch64": 41}[os.uname().machine], b".", b".")
    libc_call("umount2", b".", 2)  # the old root, stacked there by pivot_root; MNT_DETACH
    for path in ("/", *paths.hidden):
        mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | plain)
    os.chdir("/")
    open_standard_files()  # the old ones are outside, where a program could change their modes


def open_standard_files() -> None:
    """Opens the null device as standard input, output and error."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


# ---- trying each protection ----


def works_in_child(protect, *args) -> bool:
    """Whether a protection works. It is tried in a child, so that a failure has no effect here."""

    def child() -> None:
        protect(*args)
        os._exit(0)

    return os.waitpid(spawn(child), 0)[1] == 0


def spawn(function, *args) -> int:
    """Forks a child that only calls this function and exits, however it ends; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*args)
    finally:
        os._exit(1)


def python_paths(libraries: list[str]) -> Paths:
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    paths += [f"{sys.base_prefix}/lib", "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    paths += ["/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"]
    kept = []
    for path in sorted({os.path.abspath(path) for path in paths if os.path.exists(path)}):
        if not any(path.startswith(f"{parent}/") for parent in kept):
            kept.append(path)
    folders = [f"{path}/{below}" for path in kept for below in ("", "python3*/")]
    hidden = sum((glob.glob(f"{folder}*-packages") for folder in folders), [])
    return Paths(kept, hidden, libraries)


def count_threads(uid: int) -> int:
    """The number of threads that a user has now; RLIMIT_NPROC counts all of them."""
    count = 0
    for folder in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{folder}").st_uid == uid:
                count += len(os.listdir(f"/proc/{folder}/task"))
        except OSError:
            continue  # the process has ended, or is hidden
    return count


def build_box(libraries: list[str]) -> tuple[Box, list[str], list[str]]:
    """Tries each protection, enters those that the worker shares, and lists what is on and off."""
    on, off = [], []

    def try_out(name: str, protect, *args) -> bool:
        works = sys.platform == "linux" and works_in_child(protect, *args)
        (on if works else off).append(name)
        return works

    paths = python_paths(libraries)
    threads = THREADS
    if os.getuid() and os.path.isdir("/proc"):
        threads += count_threads(os.getuid())
    rooted = try_out("private root, namespaces (net, mount, ipc, uts)", enter_private_root, paths)
    if rooted:
        enter_private_root(paths)
    scratch = SCRATCH if rooted else None
    ruleset = None
    if try_out("Landlock", lambda: restrict_files(landlock_rules(paths, scratch))):
        ruleset = landlock_rules(paths, scratch)
        on[-1] += f" (ABI {libc_call('syscall', 444, None, 0, 1)})"
    may_open = rooted or ruleset is not None
    uid, capabilities = None, 0
    if os.getuid() == 0:
        uid, capabilities = choose_user(may_open)
        (off if uid is None else on).append("user id")
    if sys.platform == "linux":
        # PR_SET_DUMPABLE off: other processes of the same user cannot trace it.
        libc_call("prctl", 4, 0, 0, 0, 0)
    may_thread = os.getuid() != 0 or uid is not None
    code = call_filter(may_open, rooted, may_thread)
    tests_code = call_filter(True, False, may_thread)
    if not try_out("seccomp", refuse_unless_fork_is_denied, code):
        code = tests_code = None
    return Box(code, tests_code, ruleset, uid, capabilities, scratch or "/", threads), on, off


def choose_user(may_open: bool) -> tuple[int | None, int]:
    """A user id that root may change to, and the capabilities without which that user could not
    read Python."""
    own = 30000 + os.getpid() % 30000  # unused elsewhere, and below a container's 65,536
    override = 2  # CAP_DAC_OVERRIDE

    def drop_rights_and_read(capabilities: int) -> None:
        drop_rights(own, capabilities)
        open(os.__file__).close()

    for capabilities in (0, override) if may_open else (0,):
        if works_in_child(drop_rights_and_read, capabilities):
            return own, capabilities
    return (own if works_in_child(drop_rights, own, 0) else None), 0


def refuse_unless_fork_is_denied(code: bytes | None) -> None:
    """Raises RuntimeError unless the filter works."""
    forbid_calls(code)
    try:
        pid = os.fork()
    except OSError:
        return
    if pid == 0:
        os._exit(0)
    raise RuntimeError("fork is not denied")
