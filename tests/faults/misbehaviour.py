"""Code of users that misbehaves, kind by kind: see `tests.faults.code`."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

FINE, FAILS, DIES, ENDS = "fine", "fails", "dies", "ends"
"""Outcomes of a run with it: nothing happens; the block with frame 7 has failed; the process is gone; the run fails, or
is complete, whatever the code makes of it."""


@dataclass(frozen=True)
class Kind:
    """``code`` of ``u.py``; ``made`` of it; ``said`` in the reason or a warning then; ``files`` besides."""

    code: str
    made: str
    said: str = ""
    files: tuple[tuple[str, str], ...] = ()
    slow: bool = False


def once(statement: str, head: str = "", last: str = "return frames") -> str:
    """A function that does something with the block of frame 7; its last line is where that happens."""
    body = indent(statement, " " * 8)
    return f"{head}\ndef f(frames, numbers):\n    if 7 in numbers:\n{body}  # HERE\n    {last}\n"


def always(statement: str, head: str = "") -> str:
    """A function that does something with each block, and is fine."""
    return f"{head}\ndef f(frames, numbers):\n{indent(statement, ' ' * 4)}\n    return frames\n"


def loaded(statement: str) -> str:
    """A module that does something when it is imported, and is fine."""
    return f"{statement}  # HERE\ndef f(frames, numbers): return frames\n"


def a_class(init: str = "pass", close: str = "pass", more: str = "") -> str:
    """A class ``f``."""
    return (
        f"import os, sys, time, threading\nclass f:\n    def __init__(self, spec):\n        {init}\n"
        f"    def __call__(self, frames, numbers): return frames\n    def close(self):\n        {close}\n{more}\n"
    )


OS = "import os, sys, time, signal, threading, ctypes, atexit, gc, warnings, logging, io, re\nimport numpy as np\n"
MPI = "from mpi4py import MPI\n"

RAISES = {
    "exception": Kind(once("raise RuntimeError('no peak')"), FAILS, "RuntimeError: no peak"),
    "base exception": Kind(once("raise B('odd')", "class B(BaseException): pass"), FAILS, "B: odd"),
    "sys.exit(0)": Kind(once("sys.exit(0)", OS), FAILS, "SystemExit: 0"),
    "sys.exit(text)": Kind(once("sys.exit('no licence')", OS), FAILS, "SystemExit: no licence"),
    "keyboard interrupt": Kind(once("raise KeyboardInterrupt"), FAILS, "KeyboardInterrupt"),
    "generator exit": Kind(once("raise GeneratorExit"), FAILS, "GeneratorExit"),
    "stop iteration": Kind(once("next(iter(()))"), FAILS, "StopIteration"),
    "cancelled": Kind(once("raise asyncio.CancelledError", "import asyncio"), FAILS, "CancelledError"),
    "memory error": Kind(once("np.ones(1 << 50)", OS), FAILS, "MemoryError"),
    "recursion": Kind(once("g()", "def g(): g()  # HERE"), FAILS, "RecursionError"),
    "group": Kind(once("raise ExceptionGroup('two', [ValueError(1)])"), FAILS, "ExceptionGroup"),
    "no text": Kind(once("raise E", "class E(Exception):\n    def __str__(self): raise ValueError"), FAILS, "E"),
    "no text, exits": Kind(
        once("raise E", "import sys\nclass E(Exception):\n    def __str__(self): sys.exit(0)"), FAILS, "E"
    ),
    "text of megabytes": Kind(once("raise ValueError('x' * 5_000_000)"), FAILS, "ValueError: xxx"),
    "text with controls": Kind(once(r"raise ValueError('\x1b[2J\x00\ud800')"), FAILS, "ValueError"),
    "took too long of its own": Kind(
        once("raise w.TookTooLong('mine')", "from lima2cli import foreign as w"), FAILS, "TookTooLong"
    ),
    "dropped of its own": Kind(
        once("raise b.Dropped('mine')", "from lima2cli.nodes import base as b"), FAILS, "Dropped"
    ),
    "pool": Kind(
        once("list(ThreadPoolExecutor(2).map(int, ['x']))", "from concurrent.futures import ThreadPoolExecutor"),
        FAILS,
        "ValueError",
    ),
}

DEATHS = {
    "os._exit(0)": Kind(once("os._exit(0)", OS), DIES),
    "os._exit(3)": Kind(once("os._exit(3)", OS), DIES),
    "abort": Kind(once("os.abort()", OS), DIES),
    "segfault": Kind(once("ctypes.string_at(0)", OS), DIES),
    "kills itself": Kind(once("os.kill(os.getpid(), 9)", OS), DIES),
    "exec": Kind(once("os.execv('/bin/true', ['true'])", OS), DIES),
    "import exits": Kind(loaded("import os; os._exit(0)"), DIES),
}

LOCKED = "C = ctypes.PyDLL(None); M = ctypes.create_string_buffer(64); [C.pthread_mutex_lock(M) for _ in 'ab']"
"""Waits in C for ever, with the interpreter's lock and without using the CPU."""

HANGS = {
    "sleep": Kind(once("time.sleep(900)", OS), FAILS, "TookTooLong"),
    "loop": Kind(once("while True: pass"), FAILS, "TookTooLong"),
    "lock": Kind(once("threading.Lock().acquire() and L.acquire()", OS + "L = threading.Lock(); L.acquire()"),
                 FAILS, "TookTooLong"),
    "join": Kind(once("T.join()", OS + "T = threading.Thread(target=time.sleep, args=(900,), daemon=True); T.start()"),
                 FAILS, "TookTooLong"),
    "catches all": Kind(
        once("while True:\n    try: time.sleep(900)  # HERE\n    except BaseException: pass", OS),
        DIES,
        "TookTooLong",
        slow=True,
    ),
    "in C, lock released": Kind(
        once("C.pthread_mutex_lock(M)", OS + "C = ctypes.CDLL(None); M = ctypes.create_string_buffer(64)\n"
             "C.pthread_mutex_lock(M)"), DIES, "TookTooLong", slow=True),
    "in C, lock held": Kind(once(LOCKED, OS), DIES, slow=True),
    "in C, busy": Kind(once("sum(range(10**13))"), DIES, slow=True),
    "in C, lock held by a thread": Kind(
        once("threading.Thread(target=sum, args=(range(10**13),), daemon=True).start()", OS), DIES, slow=True),
    "import": Kind(loaded("import time; time.sleep(900)"), DIES, "TookTooLong"),
    "init": Kind(a_class(init="time.sleep(900)"), DIES, "TookTooLong"),
    "close": Kind(a_class(close="time.sleep(900)"), ENDS, "TookTooLong"),
    "close, in C": Kind(a_class(close="sum(range(10**13))"), ENDS, slow=True),
    "signal taken": Kind(
        once("for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass"
             "\ntime.sleep(900)", OS), DIES, "TookTooLong"),
    "signals blocked": Kind(
        once("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(900)", OS), DIES, "TookTooLong",
        slow=True),
    "reads stdin": Kind(once("assert not sys.stdin.read()", OS), FINE),
}  # fmt: skip

LEAVES = {
    "thread": Kind(loaded("import threading, time\nthreading.Thread(target=time.sleep, args=(900,)).start()"), FINE),
    "thread that prints": Kind(
        loaded("import threading, time\ndef g():\n    while True: print('x' * 1000); time.sleep(.001)\n"
               "threading.Thread(target=g).start()"), FINE),
    "child": Kind(once("subprocess.Popen(['sleep', '900'])", "import subprocess"), FINE),
    "child of its own session": Kind(
        once("subprocess.Popen(['sleep', '900'], start_new_session=True)", "import subprocess"), FINE),
    "fork that sleeps": Kind(once("if not os.fork(): time.sleep(900)", OS), FINE),
    "fork that returns": Kind(once("os.fork()", OS), FINE),
    "fork that raises": Kind(once("if not os.fork(): raise ValueError('child')", OS), FINE),
    "fork that exits": Kind(once("if not os.fork(): sys.exit(3)", OS), FINE),
    "multiprocessing": Kind(
        once("p = mp.get_context('fork').Process(target=int); p.start(); p.join()", "import multiprocessing as mp"),
        FINE),
    "atexit hangs": Kind(loaded("import atexit, time; atexit.register(time.sleep, 900)"), FINE, slow=True),
    "atexit raises": Kind(loaded("import atexit; atexit.register(int, 'x')"), FINE),
    "finaliser raises": Kind(
        always("X()", "class X:\n    def __del__(self): raise ValueError('finaliser')"), FINE),
    "finaliser at the end hangs": Kind(
        loaded("import time\nclass X:\n    def __del__(self): time.sleep(900)\nx = X()"), FINE, slow=True),
    "file left open": Kind(loaded("import h5py; H = h5py.File('mine.h5', 'w'); H['a'] = 1"), FINE),
}  # fmt: skip

CHANGES = {
    "signals": Kind(always("for n in (2, 15, 1): signal.signal(n, signal.SIG_DFL)", OS), FINE),
    "child signal ignored": Kind(loaded("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"), FINE),
    "alarm": Kind(once("signal.signal(14, lambda *a: None); signal.setitimer(0, .001, .001)", OS), FINE),
    "alarm, default": Kind(once("signal.alarm(1)\ntime.sleep(2)", OS), DIES),
    "streams closed": Kind(always("sys.stdout.close(); sys.stderr.close()", OS), FINE),
    "streams gone": Kind(always("sys.stdout = sys.stderr = sys.stdin = None", OS), FINE),
    "descriptors closed": Kind(always("for d in (0, 1, 2):\n    try: os.close(d)\n    except OSError: pass", OS), FINE),
    "all descriptors closed": Kind(once("os.closerange(3, 4096)", OS), ENDS),
    "directory": Kind(always("os.chdir('/')", OS), FINE),
    "directory, at import": Kind(loaded("import os; os.chdir('/')"), FINE),
    "umask": Kind(loaded("import os; os.umask(0o777)"), FINE),
    "environment": Kind(loaded("import os; os.environ.clear()"), FINE),
    "modules gone": Kind(
        once("for n in list(sys.modules):\n    if n.startswith(('json', 'h5py', 'lima2cli')): sys.modules.pop(n)", OS),
        FINE),
    "path gone": Kind(loaded("import sys; sys.path.clear(); sys.meta_path.clear()"), FINE),
    "json patched": Kind(loaded("import json; json.dumps = json.loads = lambda *a, **k: '{}'"), ENDS),
    "numpy patched": Kind(loaded("import numpy as np; np.zeros = np.empty = np.asarray = None"), ENDS),
    "open patched": Kind(loaded("import builtins; builtins.open = None"), FINE),
    "time patched": Kind(loaded("import time; time.monotonic = time.time = lambda: 0.0"), ENDS),
    "warnings as errors": Kind(loaded("import warnings; warnings.simplefilter('error')"), FINE),
    "numpy raises": Kind(loaded("import numpy as np; np.seterr(all='raise')"), FINE),
    "logging": Kind(loaded("import logging; logging.basicConfig(level=0); logging.raiseExceptions = True"), FINE),
    "no garbage": Kind(loaded("import gc; gc.disable(); gc.set_threshold(0)"), FINE),
    "recursion limit": Kind(loaded("import sys; sys.setrecursionlimit(60)"), ENDS),
    "trace": Kind(once("sys.settrace(lambda *a: 1 / 0)", OS), ENDS),
    "hooks": Kind(loaded("import sys, threading; sys.excepthook = threading.excepthook = sys.unraisablehook = None"),
                  FINE),
    "locale": Kind(loaded("import locale; locale.setlocale(locale.LC_ALL, 'C')"), FINE),
    "few files": Kind(loaded("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (8, 8))"), ENDS),
    "little memory": Kind(loaded("import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 28, 1 << 28))"), ENDS),
    "little time": Kind(loaded("import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 2))\n"
                               "while True: pass"), DIES),
    "priority": Kind(loaded("import os; os.nice(5)"), FINE),
    "affinity": Kind(loaded("import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"), FINE),
    "switch interval": Kind(loaded("import sys; sys.setswitchinterval(1e-6)"), FINE),
}  # fmt: skip

PRINTS = {
    "megabytes": Kind(always("print('x' * 3_000_000)"), FINE),
    "megabytes of errors": Kind(always("sys.stderr.write('x\\n' * 1_000_000)", OS), FINE),
    "events": Kind(always('print(\'{"type": "done", "state": "failed", "directory": "/"}\', flush=True)'), FINE),
    "words of mpiexec": Kind(always("print('YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed')"), FINE),
    "an error in the log": Kind(always("print('RunFailed: not at all', file=sys.stderr, flush=True)", OS), FINE),
    "binary": Kind(always("os.write(1, bytes(range(256)) * 100)", OS), FINE),
}

RESULTS = {
    "none": Kind(once("return None"), FAILS),
    "object": Kind(once("return object()"), FAILS),
    "objects": Kind(once("return frames.astype(object)"), FAILS),
    "generator": Kind(once("return (f for f in frames)"), FAILS),
    "ragged": Kind(once("return [[1], [1, 2]]"), FAILS),
    "text": Kind(once("return 'frames'"), FAILS),
    "shape": Kind(once("return frames[:, :4]"), FAILS),
    "fewer": Kind(once("return frames[:-1]"), FAILS),
    "nan": Kind(once("return frames * np.nan", OS), FAILS, "nan"),
    "negative": Kind(once("return frames.astype(int) - 10**6"), FAILS),
    "complex": Kind(once("return frames * 1j"), FAILS),
    "array that raises": Kind(
        once("return A()", "class A:\n    def __array__(self, *a, **k): raise RuntimeError('array')"), FAILS),
    "array that exits": Kind(
        once("return A()", "import sys\nclass A:\n    def __array__(self, *a, **k): sys.exit(0)"), FAILS),
    "array that hangs": Kind(
        once("return A()", "import time\nclass A:\n    def __array__(self, *a, **k): time.sleep(900)"), FAILS,
        "TookTooLong"),
    "sub-class": Kind(
        once("return frames.view(A)", "import numpy as np\nclass A(np.ndarray):\n"
             "    def __array_finalize__(self, o): raise RuntimeError('finalize')"), FAILS),
    "ufunc that lies": Kind(
        once("return frames.view(A)", "import numpy as np\nclass A(np.ndarray):\n"
             "    def __array_ufunc__(self, *a, **k): raise RuntimeError('ufunc')\n"
             "    def __array_function__(self, *a, **k): raise RuntimeError('function')"), ENDS),
    "alias": Kind(always("pass"), FINE),
    "reversed alias": Kind(once("return frames[:, ::-1][:, ::-1]"), FINE),
    "kept": Kind(always("K.append(frames)\nassert len(K) == 1 or K[0].sum() >= 0", "K = []"), FINE),
    "changed later": Kind(
        "import numpy as np\nR = []\ndef f(frames, numbers):\n    for r in R: r[:] = 0\n    out = frames.copy()\n"
        "    R.append(out)\n    return out\n", FINE),
    "in place": Kind(once("frames += 1"), FAILS, "read-only"),
    "in place, forced": Kind(once("frames.flags.writeable = True\nframes[:] = 0"), FAILS),
    "in place, by the base": Kind(
        once("b = frames\nwhile isinstance(b.base, np.ndarray): b = b.base\nb.flags.writeable = True\nb[:] = 0", OS),
        ENDS),
    "huge": Kind(once("return np.broadcast_to(frames, (10**9, *frames.shape))", OS), FAILS),
}  # fmt: skip

IMPORTS = {
    "raises": Kind(loaded("raise RuntimeError('no camera')"), DIES, "RuntimeError: no camera"),
    "exits": Kind(loaded("import sys; sys.exit(0)"), DIES, "SystemExit: 0"),
    "prints": Kind(loaded("print('hello')"), FINE),
    "of json.py": Kind(loaded("pass"), FINE, files=(("json.py", "raise SystemExit(9)\n"),)),
    "of numpy.py": Kind(loaded("pass"), FINE, files=(("numpy.py", "raise SystemExit(9)\n"),)),
    "of lima2cli.py": Kind(loaded("pass"), FINE, files=(("lima2cli.py", "raise SystemExit(9)\n"),)),
    "of lima2cli": Kind(loaded("pass"), FINE, files=(("lima2cli/__init__.py", "raise SystemExit(9)\n"),)),
    "removes itself": Kind(loaded("import os; os.remove(__file__)"), ENDS),
    "init raises": Kind(a_class(init="raise RuntimeError('no model')"), DIES, "RuntimeError: no model"),
    "close raises": Kind(a_class(close="raise RuntimeError('not saved')"), ENDS, "RuntimeError: not saved"),
    "close exits": Kind(a_class(close="sys.exit(0)"), ENDS, "SystemExit: 0"),
    "attributes raise": Kind(
        a_class(more="    def __getattribute__(self, name): raise RuntimeError(name)"), ENDS),
}  # fmt: skip

CALLS = {
    "finalize": Kind(once("MPI.Finalize()", MPI), ENDS),
    "abort": Kind(once("MPI.COMM_WORLD.Abort(0)", MPI), DIES),
    "barrier": Kind(once("MPI.COMM_WORLD.Barrier()", MPI), DIES, slow=True),
    "receive": Kind(once("MPI.COMM_WORLD.recv()", MPI), DIES, slow=True),
    "send": Kind(once("MPI.COMM_WORLD.isend('mine', 0, 0)", MPI), ENDS),
    "error handler": Kind(once("MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_ARE_FATAL)", MPI), FINE),
}

GROUPS = {
    "raise": RAISES, "death": DEATHS, "hang": HANGS, "leave": LEAVES, "change": CHANGES, "print": PRINTS,
    "result": RESULTS, "import": IMPORTS, "mpi": CALLS,
}  # fmt: skip

KINDS = {f"{group}: {name}": kind for group, kinds in GROUPS.items() for name, kind in kinds.items()}

PROCESSING = {
    "raises": ("raise RuntimeError('mine')", "RuntimeError: mine"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "hangs": ("import time; time.sleep(900)", "TookTooLong"),
    "hangs, catches": ("import time\n            while True:\n                try: time.sleep(900)\n"
                       "                except BaseException: pass", "TookTooLong"),
    "hangs in C": (f"import ctypes; {LOCKED}", ""),
    "hangs in C, lock released": (
        "import ctypes; M = ctypes.create_string_buffer(64); C = ctypes.CDLL(None); C.pthread_mutex_lock(M); "
        "C.pthread_mutex_lock(M)", "TookTooLong"),
    "ends": ("return", ""),
    "dies": ("import os; os._exit(0)", ""),
}  # fmt: skip
"""Acts of a `--receiver` program with the block of frame 7, and the words for each."""


def receiver_program(statement: str) -> str:
    """Such a program."""
    return (
        "def f(receiver):\n    for block in receiver.blocks('data'):\n        if 7 in block.numbers:\n"
        f"            {statement}\n"
    )


PLUGIN = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from lima2cli.nodes.base import Map
import os, sys, time, threading
import numpy as np

@dataclass(frozen=True, kw_only=True)
class Mine(Map):
    """Misbehaves."""

    kind: ClassVar[str] = "mine"

    def infer(self, inputs):
        return inputs.spec

    def bind(self, inputs):
        BIND
        calls = []
        def mine(frames):
            calls.append(1)
            if len(calls) == 2:
                CALL
            return frames.copy()
        return mine
'''


def _plugin(call: str = "pass", bind: str = "pass") -> str:
    return PLUGIN.replace("CALL", f"{call}  # HERE" if call != "pass" else call).replace("BIND", bind)


PLUGINS = {
    "raises": Kind(_plugin("raise RuntimeError('mine')"), FAILS, "RuntimeError: mine"),
    "exits": Kind(_plugin("sys.exit(0)"), FAILS, "SystemExit: 0"),
    "interrupts": Kind(_plugin("raise KeyboardInterrupt"), FAILS, "KeyboardInterrupt"),
    "hangs": Kind(_plugin("time.sleep(900)"), FAILS, "TookTooLong"),
    "hangs in C": Kind(_plugin("sum(range(10**13))"), FAILS, slow=True),
    "dies": Kind(_plugin("os._exit(0)"), DIES),
    "shape": Kind(_plugin("return frames[:, :4]"), FAILS),
    "dtype": Kind(_plugin("return frames.astype('f8')"), FAILS),
    "none": Kind(_plugin("return None"), FAILS),
    "in place": Kind(_plugin("frames[:] = 0"), ENDS),
    "alias": Kind(_plugin("return frames"), FINE),
    "bind raises": Kind(_plugin(bind="raise RuntimeError('no table')"), DIES, "RuntimeError: no table"),
    "bind exits": Kind(_plugin(bind="sys.exit(0)"), DIES, "SystemExit: 0"),
    "bind hangs": Kind(_plugin(bind="time.sleep(900)"), DIES, "TookTooLong"),
    "thread": Kind(_plugin("threading.Thread(target=time.sleep, args=(900,)).start()"), FINE),
}


DETECTOR = '''
from dataclasses import dataclass
from typing import ClassVar
from lima2cli.detectors.remu import Remu
import os, sys, time, threading

class Own:
    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def prepare(self, *args):
        PREPARE
        self.inner.prepare(*args)

    def start(self, *args):
        START
        self.inner.start(*args)

    def get_frames(self, *args):
        self.calls += 1
        if self.calls == 3:
            FRAMES
        return self.inner.get_frames(*args)

    def stop(self):
        STOP
        self.inner.stop()

    def reset(self):
        RESET
        self.inner.reset()

@dataclass(frozen=True, kw_only=True)
class Mine(Remu):
    """Misbehaves."""

    kind: ClassVar[str] = "mine"

    def open(self, info, files):
        return Own(super().open(info, files))
'''


def _detector(**calls: str) -> str:
    code = DETECTOR
    for hook in ("prepare", "start", "frames", "stop", "reset"):
        code = code.replace(hook.upper(), f"{calls[hook]}  # HERE" if hook in calls else "pass")
    return code


DETECTORS = {
    f"{hook} {name}": Kind(_detector(**{hook: statement}), DIES if name == "dies" else FAILS, said, slow="C" in name)
    for hook in ("prepare", "start", "frames")
    for name, (statement, said) in {
        "raises": ("raise RuntimeError('mine')", "RuntimeError: mine"),
        "exits": ("sys.exit(0)", "SystemExit: 0"),
        "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        "hangs": ("time.sleep(900)", "TookTooLong"),
        "hangs in C": ("sum(range(10**13))", ""),
        "dies": ("os._exit(0)", ""),
    }.items()
} | {
    "shape": Kind(_detector(frames="return self.inner.get_frames(*args)[:, :4]"), FAILS),
    "none": Kind(_detector(frames="return None"), FAILS),
    "reset raises": Kind(_detector(reset="raise RuntimeError('mine')"), FINE),
    "reset hangs": Kind(_detector(reset="time.sleep(900)"), FINE),
}
"""Detectors of a package, by the call in which they misbehave."""


def plugin(folder: Path, code: str, group: str = "nodes") -> None:
    """An installed package, in a folder of the path, with a node or detector ``mine``."""
    (folder / "lima2_mine.py").write_text(code)
    info = folder / "lima2_mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lima2-mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[lima2cli.{group}]\nmine = lima2_mine:Mine\n")
