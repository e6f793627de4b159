"""Micro-batches are the same for any number of ranks and workers and after resuming; workers always end."""

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import wait_until

from bert_pld.config import DataConfig, ModelConfig
from bert_pld.config.mask_schedule import MaskSchedule
from bert_pld.data.loader import check_matches_model, evaluation_batches, training_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.read_failures import naming_dead_workers
from bert_pld.data.rows import ShardedRows

TENSORS = ("input_ids", "token_type_ids", "masked_positions", "masked_labels", "next_sentence_labels")


def train(rows, micro=4, accumulation=1, rank=0, world=1, first=0, steps=1, first_sample=None, seed=4, **data):
    """Micro-batches from step `first` on, or from sample `first_sample` on; made in this process by default."""
    share = BatchShare(micro, accumulation, rank, world)
    first_sample = first * share.global_batch_size if first_sample is None else first_sample
    config = DataConfig(**{"workers": 0, **data})
    return training_batches(
        rows, config, share, seed=seed, num_steps=steps, first_sample=first_sample, first_step=first
    )


def evaluate(rows, micro, rank=0, world=1, seed=3, **options):
    share = BatchShare(micro, rank=rank, world_size=world)
    return evaluation_batches(rows, DataConfig(), share, seed=seed, **options)


def samples_of(batch):
    """Return (row, ids, types, targets, label) of each row, independent of its place in the micro-batch."""
    seq_length = batch.input_ids.shape[1]
    flat, labels = batch.masked_positions.numpy(), batch.masked_labels.numpy()
    found = []
    for i, row in enumerate(batch.row_indices.tolist()):
        mine = flat // seq_length == i
        targets = (flat[mine] % seq_length).tobytes(), labels[mine].tobytes()
        ids, types = batch.input_ids[i].numpy().tobytes(), batch.token_type_ids[i].numpy().tobytes()
        label = None if batch.next_sentence_labels is None else int(batch.next_sentence_labels[i])
        found.append((row, ids, types, targets, label))
    return found


def samples_by_step(rows, *, micro, accumulation, world, first=0, steps=1, **options):
    """Return the samples of all ranks together, a sorted list for each step."""
    ranks = [train(rows, micro, accumulation, rank, world, first, steps, **options) for rank in range(world)]
    result = []
    for step in zip(*ranks, strict=True):
        assert all(len(batches) == accumulation for batches in step)
        result.append(sorted(sample for batches in step for batch in batches for sample in samples_of(batch)))
    assert len(result) == steps
    return result


def assert_same(ours, theirs):
    for name in TENSORS:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert (ours.attention_mask is None) == (theirs.attention_mask is None)
    assert ours.attention_mask is None or torch.equal(ours.attention_mask, theirs.attention_mask)
    assert (ours.tokens, ours.rows, ours.masked_tokens) == (theirs.tokens, theirs.rows, theirs.masked_tokens)
    assert ours.row_indices.tolist() == theirs.row_indices.tolist()


def test_micro_batch_has_the_content_of_the_shard(make_data_dir):
    directory, written = make_data_dir()
    columns = written["train"]
    for (batch,) in train(ShardedRows(directory, "train"), micro=5, steps=8):
        rows, ids = batch.row_indices, batch.input_ids.clone()
        assert batch.input_ids.dtype == batch.token_type_ids.dtype == batch.masked_positions.dtype == torch.int64
        ids.view(-1)[batch.masked_positions] = batch.masked_labels
        assert (ids.numpy() == columns["input_ids"][rows]).all()
        length, start = columns["length"][rows][:, None], columns["segment_b_start"][rows][:, None]
        places = np.arange(32)
        assert (batch.token_type_ids.numpy() == ((places >= start) & (places < length))).all()
        assert (batch.attention_mask is None) == (length == 32).all()
        if batch.attention_mask is not None:
            assert batch.attention_mask.dtype == torch.bool
            assert (batch.attention_mask.numpy() == (places < length)).all()
        assert batch.next_sentence_labels.tolist() == columns["next_sentence_label"][rows].tolist()
        assert (batch.tokens, batch.rows) == (length.sum(), 5)
        assert batch.masked_tokens == len(batch.masked_labels) >= 5


def test_full_rows_have_no_attention_mask_and_mlm_rows_no_labels(make_data_dir):
    directory, _ = make_data_dir(objective="mlm", full=True)
    ((batch,),) = train(ShardedRows(directory, "train"))
    assert batch.attention_mask is None
    assert batch.next_sentence_labels is None
    assert batch.token_type_ids.sum() == 0
    (batch,) = evaluate(ShardedRows(directory, "validation"), micro=16)
    assert batch.next_sentence_labels is None


def test_each_epoch_visits_every_row_once_and_batches_cross_its_end(train_rows):
    visited = [row for (batch,) in train(train_rows, micro=5, steps=37) for row in batch.row_indices.tolist()]
    epochs = np.array(visited).reshape(5, 37)
    assert (np.sort(epochs, axis=1) == np.arange(37)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5


def test_micro_batch_may_be_larger_than_the_split(make_data_dir):
    rows = ShardedRows(make_data_dir(counts=(3,))[0], "train")
    ((batch,),) = train(rows, micro=16)
    assert np.bincount(batch.row_indices).tolist() in ([6, 5, 5], [5, 6, 5], [5, 5, 6])


BLOCKS = {"shuffle": "blocks", "shuffle_block_rows": 5, "shuffle_window_blocks": 3}
FALLING = {"mask_probability": MaskSchedule(start=0.6, end=0.1, after=1, over=4)}


@pytest.mark.parametrize(("micro", "accumulation", "world"), [(8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (2, 1, 4)])
@pytest.mark.parametrize(
    "options", [{}, {"whole_word": True}, BLOCKS, FALLING], ids=["tokens", "words", "blocks", "falling"]
)
def test_samples_and_masks_are_the_same_for_any_number_of_ranks(train_rows, micro, accumulation, world, options):
    """Also if a run is resumed with another number of ranks; six steps of 8 cross the end of an epoch of 37."""
    expected = samples_by_step(train_rows, micro=8, accumulation=1, world=1, steps=6, **options)
    split = {"micro": micro, "accumulation": accumulation, "world": world}
    for first in (0, 1, 4, 5):
        assert samples_by_step(train_rows, **split, first=first, steps=6 - first, **options) == expected[first:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("options", [{}, BLOCKS, FALLING], ids=["global", "blocks", "falling"])
def test_ranks_and_workers_change_no_samples(make_data_dir, options):
    """Together, ranks see the same samples. Shards have 1, 7, 0 and 512 rows; three workers make five or ten groups."""
    rows = ShardedRows(make_data_dir(counts=(1, 7, 0, 512), seq_length=512)[0], "train")
    expected = samples_by_step(rows, micro=16, accumulation=1, world=1, steps=37, **options)
    for workers, world, micro, accumulation in (
        (0, 1, 8, 2), (0, 2, 2, 4), (0, 4, 4, 1), (1, 4, 4, 1), (3, 1, 8, 2), (3, 2, 2, 4)
    ):  # fmt: skip
        split = {"world": world, "micro": micro, "accumulation": accumulation}
        assert samples_by_step(rows, **split, steps=37, workers=workers, **options) == expected, (workers, world)


@pytest.mark.parametrize("options", [{}, BLOCKS], ids=["global", "blocks"])
@pytest.mark.parametrize("stop", [1, 16, 17, 37])
def test_resuming_with_other_ranks_and_another_batch_size_continues_at_the_next_sample(make_data_dir, stop, options):
    """4 ranks with micro-batches of 8 stop; 2 ranks with 3 micro-batches of 4 continue, across an epoch's end."""
    rows = ShardedRows(make_data_dir(counts=(1, 7, 0, 512))[0], "train")
    first = samples_by_step(rows, micro=8, accumulation=1, world=4, steps=stop, **options)
    split = {"micro": 4, "accumulation": 3, "world": 2}
    rest = samples_by_step(rows, **split, first=stop, steps=20, first_sample=32 * stop, **options)
    straight = [step[0] for step in train(rows, micro=8, steps=4 * stop + 20 * 3, **options)]
    expected = [sample for batch in straight for sample in samples_of(batch)]
    ends = [0, *np.cumsum([32] * stop + [24] * 20).tolist()]
    assert first + rest == [sorted(expected[a:b]) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("counts", [(1,), (7,), (4096,), (0, 1), (1, 0, 7, 4096)])
def test_every_rank_has_the_same_number_of_micro_batches(make_data_dir, counts):
    rows = ShardedRows(make_data_dir(counts=counts, validation=7)[0], "train")
    for world in (1, 2, 4):
        ranks = [list(train(rows, micro=3, accumulation=2, rank=r, world=world, steps=5)) for r in range(world)]
        assert [[len(step) for step in steps] for steps in ranks] == [[2] * 5] * world
        shares = [list(evaluate(rows, micro=16, rank=r, world=world)) for r in range(world)]
        assert {len(share) for share in shares} == {-(sum(counts) // -(16 * world))}
        seen = [row for share in shares for batch in share for row in batch.row_indices[: batch.rows].tolist()]
        assert sorted(seen) == list(range(sum(counts)))


def test_private_memory_of_a_worker_does_not_grow_with_the_rows_read(make_data_dir):
    directory, _ = make_data_dir(counts=(20_000, 20_000), seq_length=128)
    for options in ({}, {"shuffle": "blocks", "shuffle_block_rows": 256, "shuffle_window_blocks": 8}):
        batches = train(ShardedRows(directory, "train"), micro=256, steps=100_000, workers=1, **options)

        def private_kilobytes(steps, batches=batches):
            for _ in range(steps):
                next(batches)
            (worker,) = worker_processes()
            lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()[1:]
            fields = dict(line.split(":") for line in lines)
            return sum(int(fields[name].split()[0]) for name in ("Private_Dirty", "Anonymous"))

        after_some = private_kilobytes(40)
        assert private_kilobytes(160) - after_some < 4096
        batches.close()


def test_ids_from_a_worker_are_int64_for_small_and_large_vocabularies(make_data_dir):
    for vocabulary_size in (1000, 70_000):
        rows = ShardedRows(make_data_dir(vocabulary_size=vocabulary_size)[0], "train")
        alone, shared = (list(train(rows, micro=37, steps=2, workers=workers)) for workers in (0, 1))
        for (ours,), (theirs,) in zip(alone, shared, strict=True):
            assert_same(ours, theirs)
            assert ours.input_ids.dtype == theirs.input_ids.dtype == torch.int64
        assert alone[0][0].input_ids.max() > vocabulary_size * 0.9


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_micro_batch(train_rows, workers):
    alone = list(train(train_rows, micro=4, accumulation=2, steps=7))
    shared = list(train(train_rows, micro=4, accumulation=2, steps=7, workers=workers))
    assert [len(step) for step in shared] == [2] * 7
    for ours, theirs in zip(alone, shared, strict=True):
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    wait_until(lambda: not multiprocessing.active_children(), 60)


def test_static_masks_repeat_and_dynamic_masks_change_between_epochs(train_rows):
    def by_epoch(masking):
        samples = [s for (batch,) in train(train_rows, micro=37, steps=2, masking=masking) for s in samples_of(batch)]
        return sorted(samples[:37]), sorted(samples[37:])

    static, dynamic = by_epoch("static"), by_epoch("dynamic")
    assert static[0] == static[1] == dynamic[0]
    changed = sum(a != b for a, b in zip(*dynamic, strict=True))
    assert changed >= 33  # of 37; the shortest rows have one target, which may be the same token again


@pytest.mark.parametrize("whole_word", [False, True])
def test_changing_share_masks_each_step_as_its_own_share_would(train_rows, whole_word):
    falling = list(train(train_rows, accumulation=2, steps=7, whole_word=whole_word, **FALLING))
    shares = [FALLING["mask_probability"].at(step) for step in range(7)]
    assert shares == pytest.approx([0.6, 0.6, 0.475, 0.35, 0.225, 0.1, 0.1])
    for step, (batches, share) in enumerate(zip(falling, shares, strict=True)):
        (same,) = train(train_rows, accumulation=2, first=step, whole_word=whole_word, mask_probability=share)
        for ours, theirs in zip(batches, same, strict=True):
            assert_same(ours, theirs)
    masked, tokens = (np.array([sum(getattr(b, k) for b in s) for s in falling]) for k in ("masked_tokens", "tokens"))
    assert masked[:2].sum() / tokens[:2].sum() > 3 * masked[-2:].sum() / tokens[-2:].sum()


def test_evaluation_masks_at_its_own_share(train_rows):
    share = BatchShare(64)
    settings = DataConfig(mask_probability=0.4), DataConfig(**FALLING, eval_mask_probability=0.4), DataConfig(**FALLING)
    at_40, given, at_the_end = (next(evaluation_batches(train_rows, data, share, seed=3)) for data in settings)
    assert_same(given, at_40)
    assert_same(at_the_end, next(evaluation_batches(train_rows, DataConfig(mask_probability=0.1), share, seed=3)))


def test_order_and_masks_depend_on_the_seed_and_masks_not_on_the_order(train_rows):
    ((base,),) = train(train_rows, micro=37)
    ((again,),) = train(train_rows, micro=37)
    assert_same(base, again)
    ((other_order,),) = train(train_rows, micro=37, **BLOCKS)
    assert other_order.row_indices.tolist() != base.row_indices.tolist()
    assert sorted(samples_of(other_order)) == sorted(samples_of(base))
    ((other_seed,),) = train(train_rows, micro=37, seed=5)
    assert other_seed.row_indices.tolist() != base.row_indices.tolist()
    masks, other_masks = ({row: targets for row, _, _, targets, _ in samples_of(b)} for b in (base, other_seed))
    assert sum(masks[row] != other_masks[row] for row in masks) >= 33  # of 37; the shortest rows have one target


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_random_state_is_read_or_advanced(make_data_dir, workers):
    directory, _ = make_data_dir()

    def iterate(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
        trained = list(train(ShardedRows(directory, "train"), steps=3, workers=workers))
        list(evaluate(ShardedRows(directory, "validation"), micro=4, workers=workers))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert pickle.dumps(np.random.get_state()) == before[1]
        assert random.getstate() == before[2]
        return trained

    for (ours,), (theirs,) in zip(iterate(1), iterate(2), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(("world", "batch_size"), [(1, 4), (2, 3), (4, 4), (3, 1)])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_each_row_once_with_the_same_masks(make_data_dir, world, batch_size, workers):
    rows = ShardedRows(make_data_dir()[0], "validation")
    (whole,) = evaluate(rows, micro=10)
    ranks = [list(evaluate(rows, batch_size, rank, world, workers=workers)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {-(-10 // (world * batch_size))}
    samples, tokens, targets = [], 0, 0
    for batch in (batch for batches in ranks for batch in batches):
        assert batch.input_ids.shape == (batch_size, 32)
        samples += samples_of(batch)[: batch.rows]
        tokens, targets = tokens + batch.tokens, targets + batch.masked_tokens
        assert (batch.masked_positions < batch.rows * 32).all()
        assert (batch.next_sentence_labels[batch.rows :] == -100).all()
        assert (batch.next_sentence_labels[: batch.rows] >= 0).all()
    assert sorted(samples) == sorted(samples_of(whole))
    assert (tokens, targets) == (whole.tokens, whole.masked_tokens)


def test_evaluation_of_fewer_rows_is_spread_over_the_split(make_data_dir):
    rows = ShardedRows(make_data_dir()[0], "validation")

    for max_rows, expected in ((5, [0, 2, 4, 6, 8]), (3, [0, 3, 6]), (99, list(range(10)))):
        batches = evaluate(rows, micro=2, max_rows=max_rows)
        assert [row for batch in batches for row in batch.row_indices[: batch.rows].tolist()] == expected


def test_micro_batch_can_be_moved_to_a_device_and_pickled(train_rows):
    ((batch,),) = train(train_rows)
    assert_same(batch, pickle.loads(pickle.dumps(batch)))
    assert_same(batch, batch.to("cpu"))
    on_meta = batch.to("meta")
    assert on_meta.input_ids.device.type == "meta"
    assert (on_meta.masked_tokens, on_meta.tokens) == (batch.masked_tokens, batch.tokens)


def worker_processes():
    return [process for process in multiprocessing.active_children() if process.is_alive()]


def test_closing_the_iterator_ends_the_workers(train_rows):
    batches = train(train_rows, steps=100_000, workers=2)
    next(batches)
    assert len(worker_processes()) == 2
    batches.close()
    wait_until(lambda: not worker_processes(), 60)


def test_killed_worker_raises_one_line(train_rows):
    batches = train(train_rows, steps=100_000, workers=1)
    next(batches)
    pid = worker_processes()[0].pid
    started = time.monotonic()

    def kill_and_read_on():
        os.kill(pid, signal.SIGKILL)
        list(batches)

    message = f"worker died: .*{pid}.* (exited unexpectedly|is killed by)"
    # torch's handler of signals raises its error wherever the main thread is, as `pretrain` expects.
    with pytest.raises(ChildProcessError, match=message) as error, naming_dead_workers():
        kill_and_read_on()
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 60
    assert not worker_processes()


def test_workers_ignore_the_signals_of_a_scheduler(train_rows):
    """A scheduler signals every process of a job, but the training process still needs data for its last step."""
    batches = train(train_rows, steps=100_000, workers=1)
    next(batches)
    worker = worker_processes()[0]
    for sent in ("TERM", "USR1"):
        # From another process, as a scheduler does: a worker obeys its parent's SIGTERM.
        assert os.spawnlp(os.P_WAIT, "sh", "sh", "-c", f"kill -{sent} {worker.pid}") == 0
    for _ in range(50):
        next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert not worker.is_alive()


ABANDONED = """
import multiprocessing, os, sys
from bert_pld.config import DataConfig
from bert_pld.data.loader import training_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows
rows = ShardedRows(sys.argv[1], "train")
batches = training_batches(rows, DataConfig(workers=2), BatchShare(64), seed=0, num_steps=100_000)
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), 9)
"""


def test_workers_end_when_the_training_process_is_killed(train_rows):
    command = [sys.executable, "-c", ABANDONED, str(train_rows.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert process.wait(120) == -signal.SIGKILL
    assert len(workers) == 2
    wait_until(lambda: not any(is_running(pid) for pid in workers), 60, lambda: "workers run on without their parent")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_shard_is_named_in_one_line(make_data_dir, workers):
    directory, _ = make_data_dir()
    rows = ShardedRows(directory, "train")
    path = directory / "train_00002.hdf5"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"^\S*train_00002\.hdf5: not a readable HDF5 file") as error:
        list(train(rows, micro=8, steps=10, workers=workers))
    assert "\n" not in str(error.value)
    # Torch ends a worker at once only if its iterator is not collected as a part of a cycle; otherwise after 5 s.
    traceback.clear_frames(error.tb)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro": 0}, "micro-batch size 0: must be at least 1"),
        ({"accumulation": 0}, "accumulation_steps 0: must be at least 1"),
        ({"rank": 2, "world": 2}, r"rank 2: must be in \[0, 2\)"),
        ({"shuffle": "blocks", "shuffle_block_rows": 0}, "data.shuffle_block_rows 0: must be at least 1"),
    ],
)
def test_invalid_arguments_are_refused_at_once(train_rows, options, message):
    with pytest.raises(ValueError, match=message):
        train(train_rows, **options)


def test_shards_that_do_not_match_the_model_are_refused(train_rows):
    model = ModelConfig(vocab_size=1024)
    check_matches_model(train_rows, model, seq_length=32)
    for change, seq_length, message in (
        ({"vocab_size": 999}, 32, "vocabulary of 1000 entries; the model has 999"),
        ({"max_position_embeddings": 31}, 32, "sequences of 32 tokens; the model allows at most 31"),
        ({}, 128, "sequences of 32 tokens; the run is configured for 128"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            check_matches_model(train_rows, dataclasses.replace(model, **change), seq_length)
        assert str(train_rows.data_dir) in str(error.value)
