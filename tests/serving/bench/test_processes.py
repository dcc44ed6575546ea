"""Processor time and memory of real processes, against what they say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from remerge.serving.bench.processes import Tree, taken

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells them")

# Works in two threads that end, holds memory, and says its own time.
_PROGRAM = """
import sys, threading, time
held = bytearray(200_000_000)
for place in range(0, len(held), 4096):
    held[place] = 1
def work():
    until = time.thread_time() + 0.3
    while time.thread_time() < until:
        pass
print("ready", time.process_time(), flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(time.process_time(), flush=True)
sys.stdin.readline()
"""


def test_time_and_memory_are_what_the_process_says():
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        began = float(process.stdout.readline().split()[1])
        tree = Tree(lambda: [process.pid])
        before = tree.seconds()
        print(file=process.stdin, flush=True)
        ended = float(process.stdout.readline())
        found = taken(before, tree.seconds())
        with tree.weighing():
            pass
        process.kill()
    assert found == pytest.approx(ended - began, abs=0.02) and found >= 0.6
    assert tree.memory is not None and 2e8 <= tree.memory < 2.6e8
    assert tree.gpu_memory is None or tree.gpu_memory > 0


def test_a_process_that_has_ended_is_none():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    tree = Tree(lambda: [process.pid])
    tree.weigh()
    assert tree.seconds() == {} and tree.memory is None


def test_what_began_meanwhile_counts_whole():
    assert taken({1: 5.0, 2: 1.0}, {1: 6.0, 3: 0.5}) == 1.5
    assert taken(None, {1: 1.0}) is None


def test_this_process_by_the_kernels_own_count():
    tree = Tree(lambda: [int(Path("/proc/self").readlink().name)])
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    found = sum((tree.seconds() or {}).values())
    assert found == pytest.approx((int(fields[11]) + int(fields[12])) / 100, abs=0.05)
