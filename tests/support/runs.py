"""A small learnable corpus as native shards, and training runs on it in their own processes."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from forked_runs import ForkedRuns
from repository import REPOSITORY
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from bert_pld.data.documents import pack_starts
from bert_pld.data.shards import NO_PAIR, Manifest, ShardAttributes, vocabulary_hash, write_shard

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *(f"w{i}" for i in range(51)), *(f"##p{i}" for i in range(8))]
SEQ_LENGTH = 32
LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE",
)  # fmt: skip


def write_corpus(
    directory: Path,
    *,
    train_rows: int = 96,
    validation_rows: int = 12,
    seq_length: int = SEQ_LENGTH,
    padding: int = 8,
    documents: bool = False,
) -> Path:
    """Write native shards of sequences in which a token is mostly its predecessor plus two: learnable in few steps.

    Rows have at most `padding` tokens less than `seq_length`; a row is a pair of sentences, or two `documents` that do
    not attend to each other.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    attributes = ShardAttributes(
        vocabulary_hash=vocabulary_hash(VOCABULARY),
        vocabulary_size=len(VOCABULARY),
        casing="uncased",
        seq_length=seq_length,
        objective="mlm" if documents else "mlm+nsp",
        source="synthetic",
        seed=0,
        document_starts=documents,
    )
    splits = {}
    for split, rows in (("train", train_rows), ("validation", validation_rows)):
        length = rng.integers(seq_length - padding, seq_length + 1, rows)
        start = rng.integers(0, len(VOCABULARY) - 5, (rows, 1))
        ids = 5 + (start + 2 * np.arange(seq_length)) % (len(VOCABULARY) - 5)
        noise = rng.random(ids.shape) < 0.05
        ids[noise] = rng.integers(5, len(VOCABULARY), noise.sum())
        label = rng.integers(0, 2, rows)
        segment_b = length // 2
        ids[:, 0] = 2
        ids[np.arange(rows), segment_b - 1] = 3
        ids[np.arange(rows), length - 1] = 3
        ids[np.arange(seq_length) >= length[:, None]] = 0
        columns = {"input_ids": ids, "length": length, "segment_b_start": segment_b, "next_sentence_label": label}
        if documents:
            ids[np.arange(rows), segment_b] = 2
            position = np.arange(seq_length)
            starts = pack_starts((position == 0) | (position == segment_b[:, None]))
            columns |= {"segment_b_start": length, "next_sentence_label": np.full(rows, NO_PAIR)}
            columns |= {"document_starts": starts}
        splits[split] = [write_shard(directory / f"{split}_00000.hdf5", columns, attributes)]
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), range(5), strict=True))
    Manifest(attributes, splits, {"train": train_rows, "validation": validation_rows}, special).write(directory)
    word_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").write_text("".join(token + "\n" for token in VOCABULARY))
    return directory


def word_tokenizer() -> Tokenizer:
    """Return a tokenizer with the words of the synthetic corpus."""
    tokenizer = Tokenizer(WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def small_config(**blocks: Any) -> dict[str, Any]:
    """Return a configuration that runs for seconds, with dropout and PLD at θ = 0.5; given blocks are merged in."""
    config: dict[str, Any] = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01}},
        "progressive_layer_drop": {"enabled": True, "theta": 0.5, "temporal": "constant"},
        "model": {
            "preset": None,
            "hidden_size": 32,
            "num_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "initializer_range": 0.1,
        },
        "data": {"seq_length": SEQ_LENGTH, "workers": 0},
        "training": {"max_steps": 12, "log_interval": 1, "eval_interval": 6, "checkpoint_interval": 4, "seed": 1},
    }
    for name, value in blocks.items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    return config


def clean_environment() -> dict[str, str]:
    """Return this environment without the variables of launchers and earlier runs, and with the checkout importable."""
    environment = {k: v for k, v in os.environ.items() if k not in (*LAUNCHER_VARIABLES, "PYTEST_CURRENT_TEST")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment["OMP_NUM_THREADS"] = "1"
    # Importing DeepSpeed asks whether CUDA is available. If the driver answers, CUDA is initialised, and a process
    # forked afterwards cannot use a GPU. NVML answers without that. Some releases of DeepSpeed set this themselves.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    return environment


def free_port() -> int:
    """Return an unused port below the range from which the system assigns ports to outgoing connections.

    It is above those of the ranks of the first jobs of a Slurm cluster: 15,000 and the number of the job.
    """
    while True:
        port = secrets.choice(range(16_000, 30_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start_command(module: str, ranks: int) -> list[str]:
    """Return the beginning of a command: a plain process for one rank, the `deepspeed` launcher for several."""
    if ranks == 1:
        return [sys.executable, "-m", module]
    launcher = str(Path(sys.executable).parent / "deepspeed")
    return [launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), "--module", module]


def pretrain_command(
    config: dict[str, Any], data_dir: Path, output_dir: Path, *arguments: str, ranks: int = 1
) -> list[str]:
    """Return the command of a pretraining run, whose configuration is written beside its folder."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    path = output_dir.parent / f"{output_dir.name}.json"
    path.write_text(json.dumps(config))
    paths = ["--deepspeed_config", str(path), "--data_dir", str(data_dir), "--output_dir", str(output_dir)]
    return [*start_command("bert_pld.pretrain", ranks), *paths, *arguments]


def run_pretrain(*arguments: Any, ranks: int = 1, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `pretrain_command` and check its exit code."""
    return run_command(pretrain_command(*arguments, ranks=ranks), ranks=ranks, expect=expect)


def run_evaluate(run_dir: Path, data_dir: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Evaluate a run with the command and check its exit code."""
    command = [*start_command("bert_pld.evaluate", 1), "--checkpoint", str(run_dir), "--data_dir", str(data_dir)]
    return run_command([*command, *arguments], expect=expect)


_servers: list[ForkedRuns] = []


def forked_runs() -> ForkedRuns:
    """Return the server of single ranks of this process; it is restarted if a test has changed the environment."""
    environment = clean_environment()
    if _servers and _servers[0].environment != environment:
        _servers.pop().__exit__()
    if not _servers:
        _servers.append(ForkedRuns(environment).__enter__())
    return _servers[0]


def run_command(command: list[str], *, ranks: int = 1, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of `start_command` and check its exit code; a single rank is forked off the server."""
    if ranks > 1:
        return run_captured(command, expect=expect)
    runs = forked_runs()
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder) / "stdout", Path(folder) / "stderr"
        code = runs.wait(runs.start(command, *streams))
        done = subprocess.CompletedProcess(command, code, *(stream.read_text() for stream in streams))
    return check_exit_code(done, expect)


def run_captured(
    command: Sequence[object], *, expect: int | None = 0, timeout: float = 600, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run any command, by default in `clean_environment`, capture its text and check its exit code (None: any)."""
    words, options = [str(word) for word in command], {"env": clean_environment(), **options}
    return check_exit_code(subprocess.run(words, capture_output=True, text=True, timeout=timeout, **options), expect)


def check_exit_code(done: subprocess.CompletedProcess[str], expect: int | None) -> subprocess.CompletedProcess[str]:
    """Return the process if its exit code is as expected; None expects any."""
    if expect is not None:
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only error line of a failed command; other lines on stderr are log lines."""
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-3000:]
    return errors[0]


@atexit.register
def _end_servers() -> None:
    while _servers:
        _servers.pop().__exit__()


def logged_lines(run_dir: Path) -> int:
    """Return the number of complete lines in a run's metrics.jsonl; 0 without the file."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_until(
    condition: Callable[[], object], seconds: float = 300.0, describe: Callable[[], str] = str, pause_s: float = 0.002
) -> None:
    """Wait until a condition holds, with a pause between checks; fail with a description after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(pause_s)


def start_with_signal(start: Callable[[], int], run_dir: Path, number: int) -> int:
    """Start a run by its `pretrain_command`, signal it before its first step, and return its process id.

    Its configuration is a pipe. The run opens it with its handlers installed, and waits there until it has the signal.
    """
    path = run_dir.parent / f"{run_dir.name}.json"
    text, opened = path.read_text(), []
    path.unlink()
    os.mkfifo(path)
    pid = start()

    def is_waiting() -> bool:
        with contextlib.suppress(OSError):  # no process has opened it for reading
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_until(is_waiting)
    os.kill(pid, number)
    with open(opened[0], "w") as pipe:
        pipe.write(text)
    path.unlink()
    return pid


def read_metrics(run_dir: Path, key: str = "loss") -> list[Any]:
    """Return the values of a key in a run's metrics.jsonl."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record[key] for record in records if key in record]
