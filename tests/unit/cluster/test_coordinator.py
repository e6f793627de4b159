"""The coordinator's decisions, on plain sockets in one process; messages, the identity of a process, and the clock."""

from __future__ import annotations

import socket
import subprocess
import threading

import pytest

from bert_pld.cluster import heartbeat
from bert_pld.cluster.coordinator import EXIT_LOST_RANK, Coordinator
from bert_pld.cluster.heartbeat import Cause, EndRun, Failed, Hello, Progress, RankProcess, decode, encode

TIMEOUT_S = 2.0


@pytest.fixture
def connect():
    """Start a coordinator of two ranks; return a function that opens a connection and sends bytes."""
    listener = heartbeat.listen(2)
    coordinator = Coordinator(listener, "secret", 2, heartbeat.Timing.of_run(2, TIMEOUT_S, 0.0))
    coordinator.start()
    opened = []

    def start(data):
        opened.append(socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=60))
        opened[-1].sendall(data)
        return opened[-1]

    yield start
    if coordinator.is_alive():
        opened[-1].sendall(encode(heartbeat.Finished()))
    coordinator.join(60)
    assert not coordinator.is_alive()
    for connection in [*opened, listener]:
        connection.close()


def hello(rank):
    return encode(Hello("secret", RankProcess(rank, "host", "boot", 10 + rank, 1)))


def receive(connection, kind):
    """Read messages up to the first of this kind."""
    with connection.makefile("rb") as lines:
        return next(message for line in lines if isinstance(message := decode(line), kind))


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000 + b"\n", encode(Hello("guess", RankProcess(1, "", "", 1, 1)))]
)
def test_connection_without_the_token_is_closed_and_ignored(data, connect):
    assert connect(data).recv(1) == b""
    one, zero = connect(hello(1)), connect(hello(0))
    assert receive(one, heartbeat.AllConnected).reports_loss_of_rank_0
    assert receive(zero, heartbeat.AllConnected).reports_loss_of_rank_0 is False


def test_closed_connection_is_a_lost_rank(connect):
    one, zero = connect(hello(1) + encode(Progress(1, "step 1", False))), connect(hello(0))
    receive(one, heartbeat.AllConnected)
    one.close()
    decision = receive(zero, EndRun)
    assert decision.exit_code == EXIT_LOST_RANK
    assert decision.hung == []
    assert decision.error.startswith("error: rank 1 (host host, process 11) exited unexpectedly; its last reported")


@pytest.mark.parametrize("collective_fails", [False, True])
def test_silent_rank_is_lost_and_has_to_be_killed(collective_fails, connect):
    """If the host of a rank dies, a collective of another rank may fail before the heartbeats have stopped for long."""
    connect(hello(1))
    zero = connect(hello(0))
    receive(zero, heartbeat.AllConnected)
    if collective_fails:
        zero.sendall(encode(Failed("DistBackendError: NCCL error", Cause.COLLECTIVE_FAILURE, 1)))
    decided = threading.Event()

    def send_heartbeats():
        while not decided.wait(0.1):
            zero.sendall(encode(Progress(0, "starting", False)))

    heartbeats = threading.Thread(target=send_heartbeats)
    heartbeats.start()
    decision = receive(zero, EndRun)
    decided.set()
    heartbeats.join()
    assert decision.exit_code == EXIT_LOST_RANK
    assert [process.rank for process in decision.hung] == [1]
    assert f"sent no heartbeat for {TIMEOUT_S:g} s" in decision.error


def test_error_is_reported_instead_of_the_collective_failure_that_it_caused(connect):
    one, zero = connect(hello(1)), connect(hello(0))
    receive(one, heartbeat.AllConnected)
    zero.sendall(encode(Failed("RuntimeError: gloo: connection closed by peer", Cause.COLLECTIVE_FAILURE, 1)))
    one.sendall(encode(Failed("shard is damaged", Cause.ERROR, 1)))
    assert receive(zero, EndRun) == EndRun(1, "error: rank 1 (host host, process 11) failed: shard is damaged", [], [])


def test_clock_does_not_advance_while_its_thread_is_stopped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = heartbeat.AwakeClock(0.5)
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
        *(b"", b"GET / HTTP/1.1", b"\xff", b"3", b"{}"),
        *(b'{"type": "os.system"}', b'{"type": ["Hello"]}', b'{"type": "Progress", "count": 1}'),
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
