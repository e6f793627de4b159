"""All ranks start from the checkpoint that rank 0 finds, whatever the others would find a moment later."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from begun_runs import write_checkpoint
from runs import clean_environment, small_config

from bert_pld.config import load_config
from bert_pld.data.rows import ShardedRows
from bert_pld.model import make_model
from bert_pld.training.prepare import resolve_config

RANK = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from bert_pld.checkpoint.branch import find_start
from bert_pld.config import load_config
from bert_pld.data.rows import ShardedRows
from bert_pld.training.initial_weights import RunWeights
from bert_pld.training.prepare import resolve_config

rank, config, corpus, store, run = int(sys.argv[1]), json.loads(sys.argv[2]), *map(Path, sys.argv[3:])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
rows = ShardedRows(corpus, "train")
config = resolve_config(load_config(config), rows, 1, torch.device("cpu"))
print(find_start(config, rows, run, None, run).checkpoint)
print(RunWeights(run, "", new_vocabulary=False).checkpoint)
"""


def test_all_ranks_start_from_the_checkpoint_that_rank_0_finds(corpus, tmp_path):
    rows = ShardedRows(corpus, "train")
    config = resolve_config(load_config(small_config()), rows, 1, torch.device("cpu"))
    runs = [tmp_path / "found_by_rank_0", tmp_path / "found_by_rank_1"]
    expected, _ = (str(write_checkpoint(run, make_model(config.model), config, rows)) for run in runs)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), json.dumps(small_config()), corpus, tmp_path / "store", runs[rank]],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300)[0].splitlines() for process in ranks]
    assert [lines[-2:] for lines in printed] == [[expected] * 2] * 2
