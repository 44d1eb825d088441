"""Processes that start in a moment: forked from one that has torch and transformers, instead of importing them anew.

They are processes of their own, to be killed, signalled and waited for as any other. Where the start itself is what a
test is about (what is loaded, torchrun), it uses `subprocess`.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_MODELS = [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "vit")]
_CONTEXT.set_forkserver_preload(["avse.trainer.loop", "avse.leaks", *_MODELS])


class Run:
    """A process that runs code with ``words`` as its arguments; as `subprocess.Popen` has it."""

    def __init__(self, code: str, *words: object, env: dict[str, str] | None = None):
        self._said = tempfile.TemporaryDirectory()
        arguments = (code, [str(word) for word in words], env or {}, self._said.name, os.getcwd())
        self._process = _CONTEXT.Process(target=_main, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait_for(self, said: str) -> str:
        """Wait until it has written something; all it wrote, stdout first. An error where it ends before."""
        late = time.monotonic() + 120
        while said not in (text := "".join(self._read())):
            assert self.poll() is None and time.monotonic() < late, text
            time.sleep(0.005)
        return text

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; stdout and stderr."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s: {self._read()}"
        return self._read()

    def _read(self) -> tuple[str, str]:
        out, err = (Path(self._said.name, name) for name in ("out", "err"))
        return tuple(path.read_text("utf-8") if path.exists() else "" for path in (out, err))


def avse(*words: object, env: dict[str, str] | None = None) -> Run:
    """Start the command line."""
    return Run("import sys; from avse.cli import main; sys.exit(main())", *words, env=env)


def together(worker: Callable[..., None], arguments: tuple[object, ...], count: int) -> None:
    """Call ``worker(rank, *arguments)`` in ``count`` processes; the error of one that fails is raised."""
    from torch.multiprocessing import start_processes

    start_processes(worker, arguments, count, start_method="forkserver")


def _main(code: str, words: list[str], env: dict[str, str], said: str, folder: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(os.path.join(said, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    import torch

    from avse.trainer import loop

    loop.draw_curves = lambda *_: False  # as in tests/conftest.py
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(env)
    sys.argv[1:] = words
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
