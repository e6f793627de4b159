"""Messages between ranks, the identity of a process, and the clock of the watchdog."""

from __future__ import annotations

import subprocess

import pytest

from bert_pld.cluster.coordinator import EXIT_LOST_RANK
from bert_pld.cluster.heartbeat import AwakeClock, Cause, EndRun, Failed, Hello, Progress, RankProcess, decode, encode


def test_clock_does_not_advance_while_its_thread_is_stopped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = AwakeClock(0.5)
    now[0] = 0.4
    assert clock.elapsed() == pytest.approx(0.4)
    now[0] = 100.0
    assert clock.elapsed() == 1.0


@pytest.mark.parametrize(
    "message",
    [
        Hello("secret", RankProcess(3, "n5", "boot", 812, 99)),
        Progress(7, "step 2, micro-batch 0", False),
        Failed("ValueError: ü\n", Cause.ERROR, 1),
        EndRun(EXIT_LOST_RANK, None, [RankProcess(0, "n1", "", 1, 2)], [0, 1]),
    ],
)
def test_message_is_one_line_and_is_decoded_to_itself(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1",
        b"\xff",
        b"3",
        b"{}",
        b'{"type": "os.system"}',
        b'{"type": ["Hello"]}',
        b'{"type": "Progress", "count": 1}',
        b'{"type": "RankProcess", "rank": 0, "host": "", "boot": "", "pid": 1, "start_ticks": 1}',
        b"[" * 100_000,
    ],
)
def test_anything_else_is_not_a_message(line):
    with pytest.raises(ValueError, match="not a message"):
        decode(line)


def test_process_is_identified_by_its_start_time_and_not_by_its_id_alone():
    me = RankProcess.current(0)
    child = subprocess.Popen(["sleep", "60"])
    try:
        later = RankProcess(1, me.host, me.boot, child.pid, me.start_ticks - 1)
        assert not later.is_running()
        later.send_signal(9)
        assert child.poll() is None
        assert me.is_running()
        assert me.is_on_machine_of(later)
    finally:
        child.kill()
        child.wait()
