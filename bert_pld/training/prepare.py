"""Setting up a run: process group, data, configuration, model, engine, metrics and checkpoints, in this order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bert_pld.checkpoint.branch import Start, find_start
from bert_pld.checkpoint.format import load_state
from bert_pld.checkpoint.resume import choose_checkpoint, load_weights
from bert_pld.checkpoint.writer import CheckpointWriter
from bert_pld.cluster.one_rank import naming_this_rank
from bert_pld.cluster.process_group import join_process_group
from bert_pld.cluster.run_lock import RunLock
from bert_pld.cluster.stopping import Preemption, StepAgreement
from bert_pld.cluster.watchdog import Watchdog, collective_timeout
from bert_pld.config import BATCH_KEYS, ConfigError, RunConfig, rounded_vocabulary
from bert_pld.config.errors import explaining
from bert_pld.cost.flops import parameter_count
from bert_pld.data.loader import check_matches_model
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.order import BatchShare, Origin
from bert_pld.data.rows import ShardedRows, resolve_data_dir
from bert_pld.data.shards import Manifest
from bert_pld.files import CONFIG, DIVERGED, write_atomically
from bert_pld.model import BertForPreTraining, make_model, use_backend
from bert_pld.training.engine import make_engine
from bert_pld.training.initial_weights import InitialWeights
from bert_pld.training.metrics import Metrics
from bert_pld.training.run import Run


def prepare_run(
    config: RunConfig,
    data_dir: Path,
    output_dir: Path,
    resume: str,
    initial: InitialWeights | None,
    branch_from: Path | None,
    preemption: Preemption,
    watchdog: Watchdog,
) -> Run:
    """Set up a run, new or resumed; all ranks call it together. A user's mistake raises a ValueError of one line.

    `data_dir` has native or NVIDIA's shards, or those of `data.seq_length` in `seq_<S>`. `resume` is `auto` (the
    folder's newest checkpoint, if any), `never`, or a checkpoint's path. A new run takes the weights of `initial`, or
    those of the checkpoint `branch_from` with its optimizer and its step. The watchdog is started as soon as the
    process group exists.
    """
    timeout = collective_timeout(config.training.stall_timeout)
    with naming_this_rank():  # Until the watchdog has started, no other rank learns of an error.
        device = join_process_group(timeout)
        watchdog.start(config.training.heartbeat_timeout, config.training.stall_timeout)

    watchdog.progress("opening the data", may_take_long=True)
    training_rows, validation_rows = _open_splits(config, data_dir)

    watchdog.progress("building model and engine", may_take_long=True)  # DeepSpeed may compile an optimizer.
    if initial is not None:
        initial.check(training_rows)
        config = dataclasses.replace(config, model=initial.resolved(config.model, training_rows))
    config = resolve_config(config, training_rows, dist.get_world_size(), device)
    lock = RunLock(output_dir)
    with _released_after_a_failure(lock):
        own_checkpoint = choose_checkpoint(output_dir, resume, lock)
        start = find_start(config, training_rows, output_dir, own_checkpoint, branch_from)
        model, notes = _make_model(config, training_rows, None if start is None else start.checkpoint, initial, device)
        engine = make_engine(config, model)

        encoder = model.encoder
        metrics = Metrics(output_dir, config, device, encoder.leaves_padding_out, encoder.run_chosen is not None)
        host_group = dist.new_group(backend="gloo", timeout=timeout) if dist.get_world_size() > 1 else None
        origin = Origin() if start is None else start.origin
        data_facts = _data_facts(training_rows, start, initial, origin)
        _, micro_batch_size, accumulation_steps = (config.deepspeed[key] for key in BATCH_KEYS)
        run = Run(
            config=config,
            output_dir=output_dir,
            training_rows=training_rows,
            validation_rows=validation_rows,
            batch_share=BatchShare(micro_batch_size, accumulation_steps, dist.get_rank(), dist.get_world_size()),
            origin=origin,
            engine=engine,
            metrics=metrics,
            checkpoints=CheckpointWriter(output_dir, engine, config, data_facts, host_group),
            preemption=preemption,
            watchdog=watchdog,
            agreement=StepAgreement(host_group),
            lock=lock,
            device=device,
        )
        for note in [*_notes_on_batch_sizes(config), *notes]:
            metrics.print_line(note)
        if start is None:
            metrics.begin()
        else:
            _continue_from(run, start)
        if dist.get_rank() == 0:
            _write_run_files(output_dir, config, training_rows)
        dist.barrier()
        return run


@contextlib.contextmanager
def _released_after_a_failure(lock: RunLock) -> Iterator[None]:
    """Release the lock if the block fails.

    Left in the lock's file, a refused run would look like a killed one, and a run on another machine would wait.
    """
    try:
        yield
    except BaseException:
        lock.release()
        raise


def _notes_on_batch_sizes(config: RunConfig) -> list[str]:
    """Return a line with the batch sizes if `max_micro_batch_size` may have changed those of the JSON."""
    if config.training.max_micro_batch_size is None:
        return []
    total, micro_batch_size, accumulation_steps = (config.deepspeed[key] for key in BATCH_KEYS)
    return [
        f"batch of {total:,} sequences: {micro_batch_size} micro-batch × {accumulation_steps} accumulation"
        f" × {dist.get_world_size()} rank(s)"
    ]


def _continue_from(run: Run, start: Start) -> None:
    """Load the checkpoint that the run starts from, with the state of its metrics."""
    run.watchdog.progress("loading the checkpoint")
    state = run.checkpoints.restore(start.checkpoint)
    if start.begins_folder:
        run.metrics.begin()
    run.metrics.resume(state["step"], state, run.origin)
    owed = state.get("evaluation_owed", False) and not start.is_branch and run.validation_rows is not None
    run.evaluation_owed = owed and not run.metrics.has_evaluation(state["step"])
    run.metrics.print_line(start.line)


def _data_facts(
    rows: ShardedRows, start: Start | None, initial: InitialWeights | None, origin: Origin
) -> dict[str, Any]:
    """Return what each checkpoint of the run says about its data and its first weights."""
    attributes = rows.manifest.attributes
    facts: dict[str, Any] = {"data_source": attributes.source, "data_fingerprint": rows.manifest.fingerprint()}
    if start is not None:
        facts["initialized_from"] = load_state(start.checkpoint).get("initialized_from", "")
    elif initial is not None:
        facts["initialized_from"] = initial.name
    if origin != Origin():
        facts["origin"] = dataclasses.asdict(origin)
    return facts


def resolve_config(config: RunConfig, training_rows: ShardedRows, world_size: int, device: torch.device) -> RunConfig:
    """Return the configuration with the vocabulary size, the NSP head and the batch sizes filled in.

    A ValueError is raised for fp16 on a CPU, batch sizes that do not divide, or shards that the model cannot read.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            f"{config.source}: fp16.enabled: true, but this machine has no GPU and a CPU cannot train in fp16;"
            " use --set fp16.enabled=false, or a GPU"
        )
    attributes, model = training_rows.attributes, config.model
    pairs = model.next_sentence_prediction
    config = config.with_model(
        vocab_size=model.vocab_size or rounded_vocabulary(attributes.vocabulary_size),
        next_sentence_prediction=attributes.objective == "mlm+nsp" if pairs == "auto" else pairs,
    )
    check_matches_model(training_rows, config.model, config.data.seq_length)
    _check_host_memory(config)
    with explaining(config.source):
        sizes = dict(zip(BATCH_KEYS, config.batch_sizes(world_size), strict=True))
    return dataclasses.replace(config, deepspeed={**config.deepspeed, **sizes})


def _check_host_memory(config: RunConfig) -> None:
    """Raise a ConfigError for a model that the host's memory cannot hold, rather than fill it."""
    needed, physical = 4 * parameter_count(config.model), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > physical:
        raise ConfigError(
            f"{config.source}: model: {needed / 4e9:,.1f} billion parameters need {needed / 2**30:,.0f} GiB in fp32;"
            f" this host has {physical / 2**30:,.0f} GiB"
        )


def _open_splits(config: RunConfig, data_dir: Path) -> tuple[ShardedRows, ShardedRows | None]:
    """Open the training rows, and the held-out rows if the data has any."""
    follow_links = config.data.follow_links
    data_dir = resolve_data_dir(data_dir, config.data.seq_length, follow_links)
    vocab_file = Path(config.data.vocab_file) if config.data.vocab_file else None
    training_rows = open_rows(data_dir, "train", vocab_file, follow_links)
    if training_rows.manifest.rows("validation") == 0:
        return training_rows, None
    return training_rows, open_rows(data_dir, "validation", vocab_file, follow_links)


def _make_model(
    config: RunConfig,
    training_rows: ShardedRows,
    checkpoint: Path | None,
    initial: InitialWeights | None,
    device: torch.device,
) -> tuple[BertForPreTraining, list[str]]:
    """Make the model with the weights of the checkpoint to go on from, of `initial`, or new ones; and lines on them."""
    torch.manual_seed(config.training.seed)
    model, notes = make_model(config.model), []
    if checkpoint is not None:
        load_weights(model, checkpoint)
    elif initial is not None:
        notes = initial.fill(model, config.model, training_rows)
    use_backend(model, config.model.kernels, device.type)
    if model.encoder.graphs is not None:
        manifest = training_rows.manifest
        model.encoder.graphs.tokens_per_sequence = manifest.tokens("train") / manifest.rows("train")
        notes = [*notes, *limits_of_graphs(config, manifest)]
    return model, notes


def limits_of_graphs(config: RunConfig, manifest: Manifest) -> list[str]:
    """Return a line if micro-batches of these shards run without CUDA graphs, because shapes differ."""
    if manifest.attended_tokens is not None:
        return ["model.cuda_graphs: no effect, because rows hold several documents"]
    dropping = config.progressive_layer_drop
    if dropping.enabled and dropping.granularity == "sample":
        return ["model.cuda_graphs: no effect while blocks run on some sequences (granularity 'sample')"]
    if dropping.enabled and dropping.granularity == "token" and config.model.normalization == "post":
        return ["model.cuda_graphs: no effect while Post-LN blocks run on some tokens (granularity 'token')"]
    places = manifest.rows("train") * manifest.attributes.seq_length
    if config.model.architecture == "bert" or manifest.tokens("train") == places:
        return []
    share = 1 - manifest.tokens("train") / places
    return [
        f"model.cuda_graphs: no effect on micro-batches with padding; {share:.1%} of the shards' tokens are padding"
    ]


def _write_run_files(output_dir: Path, config: RunConfig, training_rows: ShardedRows) -> None:
    write_atomically(output_dir / CONFIG, json.dumps(config.as_json(), indent=2) + "\n")
    (output_dir / DIVERGED).unlink(missing_ok=True)
    training_rows.save_tokenizer(output_dir)
