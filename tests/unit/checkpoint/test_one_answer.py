"""All ranks start from the checkpoint that rank 0 finds, whatever the others would find a moment later."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from begun_runs import write_checkpoint
from runs import small_config

from bert_pld.checkpoint.branch import find_start
from bert_pld.config import load_config
from bert_pld.data.rows import ShardedRows
from bert_pld.model import make_model
from bert_pld.training.initial_weights import RunWeights
from bert_pld.training.run import resolve_config


def answers(folder, find):
    """Return what `find(rank)` returns on each of two ranks."""
    ranks = []
    for rank in range(2):
        ranks.append(os.fork())
        if not ranks[-1]:
            try:
                dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
                (folder / f"answer_{rank}").write_text(find(rank))
            finally:
                os._exit(0)
    for pid in ranks:
        os.waitpid(pid, 0)
    return [(folder / f"answer_{rank}").read_text() for rank in range(2)]


def test_all_ranks_start_from_the_checkpoint_that_rank_0_finds(corpus, tmp_path):
    rows = ShardedRows(corpus, "train")
    config = resolve_config(load_config(small_config()), rows, 1, torch.device("cpu"))
    runs = [tmp_path / "found_by_rank_0", tmp_path / "found_by_rank_1"]
    expected, _ = (str(write_checkpoint(run, make_model(config.model), config, rows)) for run in runs)

    def find(rank):
        start = find_start(config, rows, None, runs[rank])
        return f"{start.checkpoint} {RunWeights(runs[rank], '', new_vocabulary=False).checkpoint}"

    assert answers(tmp_path, find) == [f"{expected} {expected}"] * 2
