"""benchmarks communication: the counted collectives of two launched ranks equal the cost model, byte for byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import clean_environment, free_port

from benchmarks.__main__ import build_parser
from benchmarks.communication import command as communication

OPTIONS = [
    *("--gates", "batch", "--thetas", "0.1", "--accumulations", "2", "--overlap_comm", "default,on"),
    *("--num_layers", "3", "--hidden_size", "192", "--vocab_size", "600", "--seq_length", "16"),
    *("--micro_batch_size", "2", "--counted_steps", "3"),
]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Counted steps by ZeRO stage and `overlap_comm`."""
    out = tmp_path_factory.mktemp("counted") / "bytes.json"
    launcher = [Path(sys.executable).parent / "deepspeed", "--no_local_rank", "--num_gpus", "2"]
    subject = ["--module", "benchmarks", "communication", *OPTIONS, "--json", out]
    command = [*launcher, "--master_port", str(free_port()), *subject]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    result = json.loads(out.read_text())
    return {(one["stage"], bool(one["overlap_comm"])): one["steps"] for one in result["settings"]}


@pytest.mark.thorough
@pytest.mark.launcher
def test_counted_bytes_equal_the_cost_model_at_every_zero_stage(counted):
    assert sorted(counted) == [(stage, overlap) for stage in range(4) for overlap in (False, True)]
    for (stage, _), steps in counted.items():
        for step in steps:
            assert step["gradient_bytes"] == step["modelled_gradient_bytes"] > 0
            assert step["parameter_bytes"] == step["modelled_parameter_bytes"]
            assert step["gradient_calls"] == step["modelled_gradient_calls"]
            assert (step["parameter_bytes"] > 0) is (stage > 0)
            assert step["kinds"] == ["reduce_scatter" if stage == 3 else "all_reduce"]
            assert step["other_bytes"] == 0
            assert step["scalar_bytes"] <= 64


@pytest.mark.launcher
def test_dropped_blocks_send_zeros_or_nothing(counted):
    """Stages 0 and 3 send zeros; 1 and 2 send nothing; 1 with overlap_comm sends zeros."""
    dropped = [step["dropped_bytes"] for step in counted[0, False]]
    whole = counted[0, False][0]["gradient_bytes"]
    assert max(dropped) > 0
    for stage, overlap in ((0, False), (3, False), (1, True)):
        for step, size in zip(counted[stage, overlap], dropped, strict=True):
            assert step["gradient_zero_bytes"] >= size
    for step, size in zip(counted[1, False], dropped, strict=True):
        assert step["gradient_bytes"] == whole - size
    assert [step["gradient_bytes"] for step in counted[1, True]] == [whole] * 3
    for step in counted[2, False]:
        assert step["gradient_bytes"] < 2 * whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "all"], "--parts all: must be a list of bytes, links, steps"),
        (["--stages", "4"], "--stages 4: must be a list of 0, 1, 2, 3"),
        (["--thetas", "2"], r"--thetas 2: must be numbers in \(0, 1\]"),
        ([], "communication needs at least two ranks"),
    ],
)
def test_invalid_options_are_rejected(arguments, message, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    options = build_parser("communication").parse_args(arguments)
    with pytest.raises(ValueError, match=message):
        communication.measure(options)
