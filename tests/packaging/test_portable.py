"""Nothing in src assumes Linux: calls that other systems lack stand in guarded places, text has its encoding named."""

from __future__ import annotations

import ast
import re

import pytest

MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
CALLS = {
    "os": """O_DIRECTORY O_NOFOLLOW chown chroot eventfd fchmod fchown fork forkpty getegid geteuid getgid getloadavg
        getpgid getuid kill killpg lchown memfd_create mkfifo mknod nice pidfd_open pipe2 posix_fadvise posix_fallocate
        posix_spawn pread preadv pwrite pwritev register_at_fork sched_getaffinity sched_setaffinity sendfile setgid
        setsid setuid splice statvfs sync sysconf ttyname uname wait waitpid""",
    "signal": """SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm pause pthread_kill
        pthread_sigmask setitimer sigtimedwait sigwait""",
    "socket": "AF_UNIX SO_REUSEPORT recv_fds send_fds",
    "mmap": "MADV_DONTNEED MADV_WILLNEED MAP_ANONYMOUS MAP_PRIVATE MAP_SHARED PROT_READ PROT_WRITE",
}
NAMES = {f"{module}.{name}" for module, names in CALLS.items() for name in names.split()}
METHODS = {"hardlink_to", "symlink_to", "link_to", "fchdir", "malloc_trim", "mallopt", "madvise", "pass_fds"}
LINKS = {"os.link", "os.symlink", "os.readlink"}
PLACES = re.compile(r"/(proc|dev|sys|tmp|var|etc|usr)(/|$)")
WAYS_OUT = {"ImportError", "AttributeError", "OSError", "NotImplementedError", "ModuleNotFoundError"}

ELSEWHERE = {
    ("index/feed.py", "pass_fds"): "_Worker: feed.embed_files reads in its own process on Windows",
    ("index/feed.py", "signal.SIGALRM"): "_Worker's end, as above",
    ("index/decoder.py", "os.nice"): "the program of a _Worker, as above",
    ("index/decoder.py", "signal.setitimer"): "the program of a _Worker, as above",
    ("benchmarks/__init__.py", "/proc"): "read where the file is there",
    ("trainer/record.py", "/proc"): "_line_of gives None where there is no such file",
    ("benchmarks/indexing.py", "/proc"): "a glob, which finds nothing where there is no /proc",
}
"""Where the guard stands in another function than the call."""


def is_guard(test: ast.AST) -> bool:
    said = ast.unparse(test)
    return bool(re.search(r"sys\.platform|os\.name|hasattr\(|platform\.system\(\)", said))


def found(tree: ast.AST) -> list[tuple[str, bool]]:
    """What is POSIX only in a file, and whether a guard is around it: a test of the platform, or a handler."""
    seen: list[tuple[str, bool]] = []

    def name_of(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names if alias.name in MODULES]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            return [node.module] if node.module in MODULES else [name for name in names if name in NAMES | LINKS]
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            return [whole] if whole in NAMES | LINKS else [node.attr] if node.attr in METHODS else []
        if isinstance(node, ast.keyword) and node.arg in METHODS:
            return [node.arg]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("fork", "forkserver"):
            return [node.value]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (place := PLACES.match(node.value)):
            return [f"/{place[1]}"]
        return []

    def walk(node: ast.AST, guarded: bool) -> None:
        seen.extend((name, guarded) for name in name_of(node))
        for field, value in ast.iter_fields(node):
            inside = guarded
            if isinstance(node, (ast.If, ast.IfExp)) and is_guard(node.test):
                inside = True
            if isinstance(node, ast.Try) and field == "body":
                inside |= bool(WAYS_OUT & {n for h in node.handlers for n in re.findall(r"\w+", ast.unparse(h.type))})
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST):
                    continue
                walk(child, inside)
                leaves = isinstance(child, ast.If) and isinstance(child.body[-1], (ast.Return, ast.Raise))
                if field == "body" and leaves and is_guard(child.test):
                    inside = True  # what follows is for the other systems

    walk(tree, False)
    return seen


def test_posix_only_calls_stand_in_guarded_places(trees):
    calls = {(name, what, guarded) for name, tree in trees.items() for what, guarded in found(tree)}
    bare = {(name, what) for name, what, guarded in calls if not guarded}
    assert bare == set(ELSEWHERE), f"unguarded: {bare - set(ELSEWHERE)}, no longer there: {set(ELSEWHERE) - bare}"
    assert {"fcntl", "os.preadv", "os.sched_getaffinity", "os.memfd_create", "malloc_trim", "/proc"} <= {
        what for _, what, guarded in calls if guarded
    }, "the search finds what is known to be there"


@pytest.mark.parametrize(
    ("code", "guarded"),
    [
        ("import fcntl", False),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", True),
        ("import sys\nif sys.platform != 'win32':\n    import fcntl", True),
        ("def f():\n    os.kill(1, 2)", False),
        ("def f():\n    if os.name == 'nt':\n        return 0\n    return os.kill(1, 2)", True),
        ("def f():\n    if n:\n        return 0\n    return os.kill(1, 2)", False),
        ("n = os.kill(1, 2) if hasattr(os, 'kill') else 0", True),
        ("try:\n    os.fork()\nexcept ValueError:\n    pass", False),
        ("p = Path('/tmp')", False),
        ("c = get_context('fork')", False),
        ("from os import fork", False),
        ("a.symlink_to(b)", False),
    ],
)
def test_the_search_sees(code, guarded):
    assert [seen for _, seen in found(ast.parse(code))] == [guarded]


def text_without_encoding(call: ast.Call) -> bool:
    """Tell whether a call opens or reads text in an encoding that the system chooses."""
    function, names = call.func, {keyword.arg for keyword in call.keywords}
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if "encoding" in names or None in names:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name in ("run", "Popen", "check_output") and owner == "subprocess":
        return bool({"text", "universal_newlines"} & names)
    if name in ("NamedTemporaryFile", "TemporaryFile", "open", "fdopen"):
        if name == "open" and owner and not re.search(r"\b(path|file|folder|Path\(.*\)|target|io|os)$", owner):
            return False  # Image.open, Index.open, archive.open, ...
        place = 0 if name.endswith("TemporaryFile") or (owner and owner not in ("io", "os")) else 1
        given = [k.value for k in call.keywords if k.arg == "mode"] or call.args[place : place + 1]
        mode = given[0].value if given and isinstance(given[0], ast.Constant) else None
        if name.endswith("TemporaryFile"):
            return isinstance(mode, str) and "b" not in mode
        return not given or (isinstance(mode, str) and "b" not in mode)
    return False


def test_text_is_read_and_written_in_a_named_encoding(trees):
    lines = [
        f"{name}:{node.lineno}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and text_without_encoding(node)
    ]
    assert not lines, f"on Windows the encoding is another; say which: {', '.join(lines)}"


def test_names_in_files_are_posix_paths(trees):
    """What goes into manifests, ids and payloads is written with /: str() of a relative path is not."""
    lines = [
        f"{name}:{node.lineno}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "str"
        and re.search(r"relative_to\(|relpath\(", ast.unparse(node))
    ]
    assert not lines, f"use as_posix(): {', '.join(lines)}"
