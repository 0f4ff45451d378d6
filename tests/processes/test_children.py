"""A process beside this one: what it answers, and what becomes of it when it dies, hangs or takes too much."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from aneurysm.errors import AneurysmError, Reason
from aneurysm.processes import child_main
from aneurysm.processes.children import Child, Children, ChildTiming, Limits, LostError, StoppedError, runner


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.stop()
    made.wait()


def test_one_process_answers_all_questions(child: Child) -> None:
    first = child.run(os.getpid)
    assert child.run(divmod, 7, 2) == (3, 1)
    assert child.run(os.getpid) == first != os.getpid()


def test_what_a_function_raises_is_raised_here_and_the_process_goes_on(child: Child) -> None:
    first = child.run(os.getpid)
    with pytest.raises(ZeroDivisionError, match="division"):
        child.run(divmod, 1, 0)
    assert child.run(os.getpid) == first


def test_an_exception_that_can_not_be_pickled_still_says_what_it_was(child: Child) -> None:
    code = "exec('class Odd(Exception):\\n pass\\nraise Odd(\"of this kind\")')"
    with pytest.raises(RuntimeError, match="Odd: of this kind"):
        child.run(eval, code)


def test_a_job_that_can_not_be_loaded_is_an_error_and_not_a_lost_process(child: Child) -> None:
    class _Broken:
        def __reduce__(self) -> tuple[object, ...]:
            return (__import__, ("no_such_module_anywhere",))

    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        child.run(id, _Broken())
    assert child.run(divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize(
    "function, args, name",
    [
        pytest.param(signal.raise_signal, (signal.SIGKILL,), "SIGKILL: out of memory", id="killed"),
        pytest.param(signal.raise_signal, (signal.SIGALRM,), "SIGALRM$", id="ended by somebody"),
        pytest.param(ctypes.string_at, (0,), "SIGSEGV: a crash", id="segmentation fault"),
        pytest.param(os.abort, (), "SIGABRT: a crash", id="abort"),
        pytest.param(os._exit, (3,), "exit code 3$", id="exit"),
        pytest.param(os._exit, (0,), "exit code 0", id="exit without a fault"),
    ],
)
def test_a_death_costs_one_answer(child: Child, function: object, args: tuple[object, ...], name: str) -> None:
    first = child.run(os.getpid)
    with pytest.raises(LostError, match=name) as lost:
        child.run(function, *args)  # type: ignore[arg-type]
    assert lost.value.reason == Reason.WORKER_KILLED
    assert child.run(os.getpid) != first
    assert not psutil.pid_exists(first)


def test_more_time_than_allowed(child: Child) -> None:
    first = child.run(os.getpid)
    with pytest.raises(LostError, match=r"0\.3 s") as lost:
        child.run(time.sleep, 600, limits=Limits(timeout_s=0.3))
    assert lost.value.reason == Reason.TIMED_OUT
    assert not psutil.pid_exists(first)
    assert child.run(divmod, 7, 2, limits=Limits(timeout_s=60)) == (3, 1)
    assert child.run(divmod, 7, 2, limits=Limits(timeout_s=float("inf"))) == (3, 1)


def test_the_start_does_not_count_against_the_time(child: Child) -> None:
    """Loading this module and its libraries takes far longer than 50 ms; calling what is in it takes nothing."""
    assert child.run(child_main._memory_bytes, limits=Limits(timeout_s=0.05))[0] > 0


GROW = "[__import__('time').sleep(0.01) or held.append(b'x' * 2**20) for held in [[]] for _ in range(3000)] and 0"


def test_more_memory_than_allowed(child: Child) -> None:
    """Little by little, up to 3 GB: found by looking at what the process has."""
    first = child.run(os.getpid)
    with pytest.raises(LostError, match="300 MB") as lost:
        child.run(eval, GROW, limits=Limits(memory_mb=300))
    assert lost.value.reason == Reason.OUT_OF_MEMORY
    assert not psutil.pid_exists(first)


def test_one_huge_piece_of_memory_is_refused_at_once(child: Child) -> None:
    """The process lives, and can say so; and the limit is this job's alone."""
    first = child.run(os.getpid)
    with pytest.raises(MemoryError):
        child.run(eval, "len(bytearray(900_000_000))", limits=Limits(memory_mb=300))
    assert child.run(eval, "len(bytearray(900_000_000))") == 900_000_000
    assert child.run(os.getpid) == first


def fill() -> int:
    """Fill pieces of 16 MB as fast as they can be filled, up to 3 GB; return the highest number of bytes resident."""
    pieces: list[bytearray] = []
    with suppress(MemoryError):
        pieces.extend(bytearray(b"x") * 2**24 for _ in range(200))
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(peak.split()[1])


def test_memory_that_is_filled_between_two_looks_stays_within_a_tenth() -> None:
    """The parent does not look at all: what remains is the limit on what may be reserved."""
    with Children(ChildTiming(poll_s=60.0)) as children:
        assert 300_000_000 < children.run(fill, limits=Limits(memory_mb=400)) < 440_000_000


def test_a_runner_of_no_workers_is_this_process() -> None:
    with runner(0) as here, runner(1) as elsewhere:
        assert here.run(os.getpid) == os.getpid() != elsewhere.run(os.getpid)
        elsewhere.rest()
        here.rest()


def test_those_that_rest_give_back_their_memory_and_are_replaced() -> None:
    with Children() as children:
        first = children.run(os.getpid)
        children.rest()
        assert not psutil.pid_exists(first)
        assert children.run(os.getpid) != first


def test_a_process_that_keeps_much_is_replaced_before_it_counts_against_the_next_job(child: Child) -> None:
    limits = Limits(memory_mb=400)
    first = child.run(os.getpid, limits=limits)
    child.run(eval, "globals().setdefault('kept', b'x' * 250_000_000) and 0", limits=limits)
    assert child.run(os.getpid, limits=limits) != first


def test_one_that_was_killed_while_idle_is_replaced(child: Child) -> None:
    first = child.run(os.getpid)
    psutil.Process(first).kill()
    assert child.run(os.getpid) != first


def test_libraries_have_one_thread_and_print_to_standard_error(child: Child, capfd: pytest.CaptureFixture[str]) -> None:
    assert child.run(os.getenv, "OMP_NUM_THREADS") == "1"
    child.run(os.write, 1, b"from a library")
    assert capfd.readouterr() == ("", "from a library")


def test_ctrl_c_and_sigterm_are_the_parents_business(child: Child) -> None:
    first = child.run(os.getpid)
    for sent in (signal.SIGINT, signal.SIGTERM):
        os.kill(first, sent)
        time.sleep(0.1)
    assert child.run(os.getpid) == first


def test_one_that_can_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(AneurysmError, match=r"could not be started .*false.* 3 times"):
        Child(ChildTiming(starts=3)).run(os.getpid)


def test_a_shortage_of_processes_that_passes_is_waited_for(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = subprocess.Popen, [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")] * 2

    def refuse_twice(*args: object, **options: object) -> object:
        if refused:
            raise refused.pop()
        return start(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", refuse_twice)
    assert child.run(divmod, 7, 2) == (3, 1)
    assert not refused


def test_stopped_from_another_thread(child: Child) -> None:
    first = child.run(os.getpid)
    threading.Timer(0.3, child.stop).start()
    with pytest.raises(StoppedError):
        child.run(time.sleep, 600)
    child.wait()
    assert not psutil.pid_exists(first)
    with pytest.raises(StoppedError):
        child.run(os.getpid)


def test_one_at_work_ends_with_the_other_side_of_its_socket(child: Child) -> None:
    """As when this process were killed; which it is not, so that nothing else can tell."""
    process = psutil.Process(child.run(os.getpid))
    assert child._connection is not None
    with socket.socket(fileno=os.dup(child._connection.fileno())) as ours:
        threading.Timer(0.3, ours.shutdown, (socket.SHUT_RDWR,)).start()
        with pytest.raises(LostError, match="exit code 1"):
            child.run(time.sleep, 600)
    assert not process.is_running()


def count_down(n: int) -> str:
    for k in range(n, 0, -1):
        child_main.send_note(k)
    return "done"


def test_notes_come_in_order_before_the_answer(child: Child) -> None:
    notes: list[int] = []
    assert child.run(count_down, 3, on_note=notes.append, limits=Limits(memory_mb=1000)) == "done"
    assert notes == [3, 2, 1]

    def refuse(_note: int) -> None:
        raise ZeroDivisionError

    first = child.pid
    with pytest.raises(ZeroDivisionError):
        child.run(count_down, 3, on_note=refuse)
    assert child.run(os.getpid) != first, "its other notes would have been taken for the next answer"


@pytest.mark.parametrize(("idle_s", "stays"), [(0.2, False), (None, True)])
def test_an_idle_process_ends_after_a_while_unless_it_is_to_stay(idle_s: float | None, stays: bool) -> None:
    child = Child(ChildTiming(idle_s=idle_s))
    process = psutil.Process(child.run(os.getpid))
    if stays:
        time.sleep(1.0)
        assert child.run(os.getpid) == process.pid
    else:
        process.wait(20)
        assert child.run(os.getpid) != process.pid
    child.stop()
    child.wait()


def test_children_are_used_again_and_end_together() -> None:
    with Children() as children:
        first = children.run(os.getpid)
        assert children.run(os.getpid) == first
        found: list[str] = []

        def sleep() -> None:
            try:
                children.run(time.sleep, 600)
            except StoppedError:
                found.append("stopped")

        threads = [threading.Thread(target=sleep) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(pids := _child_pids()) < 2:
            time.sleep(0.05)
        assert first in pids
    for thread in threads:
        thread.join(20)
    assert found == ["stopped", "stopped"]
    assert not any(map(psutil.pid_exists, pids))
    with pytest.raises(StoppedError):
        children.run(os.getpid)


def _child_pids() -> list[int]:
    pids = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a zombie, too: another test's, of which nobody has asked how it ended
            if "aneurysm.processes.child_main" in str(process.cmdline()):
                pids.append(process.pid)
    return pids


def test_many_that_do_not_die_are_not_waited_for_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when they hang in the kernel, on a dead file server."""
    monkeypatch.setattr(Child, "wait", lambda _child, patience_s: time.sleep(patience_s))
    children = Children(ChildTiming(kill_s=0.5))
    children._all = [Child() for _ in range(20)]
    began = time.monotonic()
    children.stop()
    assert time.monotonic() - began < 5 * 0.5
