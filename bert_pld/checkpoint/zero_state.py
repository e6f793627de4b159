"""Where a DeepSpeed engine keeps its fp32 weights and optimizer states, for every ZeRO stage and precision.

DeepSpeed's optimizers flatten parameters, pad them, and give each rank a part. `find_pieces` describes this rank's part
as pieces of named parameters, so that saving and restoring do not depend on the stage. It reads DeepSpeed's own maps,
those that its universal checkpoint is made from. DeepSpeed's checkpoint files are not used: they are pickles, which run
code when they are read, and they depend on the stage and the number of ranks.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

_LOSS_SCALE_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_SCHEDULED_KEYS = ("lr", "betas", "momentum")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A contiguous part of one flattened parameter that this rank's optimizer updates."""

    name: str
    start: int
    """Index of its first value in the flattened parameter."""
    numel: int
    owner: torch.Tensor
    """The tensor that the optimizer updates: the parameter itself, or a flat tensor that holds many pieces."""
    offset: int
    """Index of its first value in the flattened owner."""

    def view_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this piece as a view of the owner, or of a state with the owner's shape."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.numel]


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside DeepSpeed's wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def is_partitioned(engine: Any) -> bool:
    """Return whether each rank holds only a part of the states; otherwise each holds all of them."""
    return any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for p in engine.module.parameters())


def find_pieces(engine: Any) -> list[Piece]:
    """Return this rank's pieces, in the order of the model's parameters."""
    optimizer, names = engine.optimizer, {p: name for name, p in engine.module.named_parameters()}
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        found = _stage_three(optimizer, names)
    elif is_partitioned(engine):
        groups = getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups
        found = _mapped(optimizer, groups, names)
    elif hasattr(optimizer, "fp32_groups_flat"):
        found = _flattened(optimizer.fp16_groups, optimizer.fp32_groups_flat, names)
    elif hasattr(optimizer, "fp32_groups"):
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        found = [Piece(names[p], 0, p.numel(), owner, 0) for group in pairs for p, owner in zip(*group, strict=True)]
    else:
        found = [Piece(name, 0, p.numel(), p, 0) for p, name in names.items()]
    order = {name: place for place, name in enumerate(names.values())}
    return sorted(found, key=lambda piece: (order[piece.name], piece.start))


def _mapped(optimizer: Any, groups: Any, names: Mapping[Any, str]) -> list[Piece]:
    """ZeRO 1 and 2, and bf16 without ZeRO: DeepSpeed maps each parameter to a fragment of a flat partition."""
    found = []
    for group, owners in zip(groups, optimizer.optimizer.param_groups, strict=True):
        (owner,) = owners["params"]
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                # lp: the low-precision parameter; hp: its high-precision copy in the flat partition.
                in_parameter, in_owner = mapping.lp_fragment_address, mapping.hp_fragment_address
                found.append(Piece(names[parameter], in_parameter.start, in_parameter.numel, owner, in_owner.start))
    return found


def _stage_three(optimizer: Any, names: Mapping[Any, str]) -> list[Piece]:
    """ZeRO 3: each parameter is divided into equal parts, the last one padded."""
    found = []
    for parameter, name in names.items():
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = size * torch.distributed.get_rank(parameter.ds_process_group)
        numel = min(size, parameter.ds_numel - start)
        if numel > 0:
            found.append(Piece(name, start, numel, optimizer.fp32_partitioned_groups_flat[group], offset))
    return found


def _flattened(groups: Any, owners: Any, names: Mapping[Any, str]) -> list[Piece]:
    """fp16 without ZeRO: each group of parameters is one flat tensor, whole on every rank."""
    found = []
    for group, owner in zip(groups, owners, strict=True):
        offset = 0
        for parameter in group:
            found.append(Piece(names[parameter], 0, parameter.numel(), owner, offset))
            offset += parameter.numel()
    return found


def owners_in_order(engine: Any) -> list[torch.Tensor]:
    """Return the tensors that the optimizer updates, in the same order on every rank."""
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [owner for group in base_optimizer(engine).param_groups for owner in group["params"]]


def full_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each whole parameter, also under ZeRO 3, where this rank holds only a part."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def tensor_states(engine: Any, pieces: list[Piece]) -> dict[str, set[str]]:
    """Return the states with one value for each weight (Adam: exp_avg, exp_avg_sq), and the parameters that have them.

    Only this rank's parameters are in it. Muon keeps other states for matrices than for the rest.
    """
    state = base_optimizer(engine).state
    kinds: dict[str, set[str]] = {}
    for piece in pieces:
        for key, value in state.get(piece.owner, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == piece.owner.shape:
                kinds.setdefault(key, set()).add(piece.name)
    return kinds


def scalar_states(engine: Any, pieces: list[Piece]) -> dict[str, dict[str, Any]]:
    """Return for each of this rank's parameters the states that are one number, such as Adam's step counter."""
    state = base_optimizer(engine).state
    scalars: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        entries = scalars.setdefault(piece.name, {})
        for key, value in state.get(piece.owner, {}).items():
            if isinstance(value, torch.Tensor) and value.numel() == 1 and value.shape != piece.owner.shape:
                entries[key] = {"value": value.item(), "tensor": True}
            elif isinstance(value, (int, float)):
                entries[key] = {"value": value, "tensor": False}
    return scalars


def read_scalars(engine: Any, scalars: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return everything but tensors as JSON values: step counters, learning rates, scheduler, loss scale.

    `scalars` are the `scalar_states` of all ranks. What most parameters share is saved once, as `state`; `state_of` has
    the parameters that differ from it.
    """
    optimizer = base_optimizer(engine)
    entries = list(scalars.values())
    common = max(entries, key=entries.count, default={})
    groups = [{k: v for k, v in group.items() if _is_plain(v)} for group in optimizer.param_groups]
    scales = ({k: getattr(s, k) for k in _LOSS_SCALE_KEYS if hasattr(s, k)} for s in _loss_scalers(engine))
    scheduler = engine.lr_scheduler.state_dict() if engine.lr_scheduler is not None else None
    return {
        "optimizer": type(optimizer).__name__,
        "state": common,
        "state_of": {name: own for name, own in sorted(scalars.items()) if own != common},
        "groups": groups,
        "scheduler": None if scheduler is None else {k: v for k, v in scheduler.items() if _is_plain(v)},
        "loss_scale": next(iter(scales), None),
        "skipped_steps": engine.skipped_steps,
    }


def restore_scalars(
    engine: Any, pieces: list[Piece], saved: Mapping[str, Any], step: int, same_rates: bool = True
) -> None:
    """Restore what `read_scalars` returned after optimizer step `step`, and the engine's counters.

    Unless the learning rates are the `same_rates`, their new schedule goes on from that step as if it had always been.
    """
    optimizer = base_optimizer(engine)
    names = {id(piece.owner): piece.name for piece in reversed(pieces)}
    for owner, _ in by_owner(pieces):
        # torch's fused and capturable optimizers need their step counter on the weights' device, others on the host.
        on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        device = owner.device if on_device else torch.device("cpu")
        # A flat tensor that holds several parameters has one set of numbers: those of the first.
        entries = saved.get("state_of", {}).get(names[id(owner)], saved["state"])
        for key, entry in entries.items():
            optimizer.state[owner][key] = _restored_number(key, entry, optimizer, device)
    for group, saved_group in zip(optimizer.param_groups, saved["groups"], strict=True):
        keys = ("step", *_SCHEDULED_KEYS) if engine.lr_scheduler is not None and same_rates else ("step",)
        group.update({key: saved_group[key] for key in keys if key in saved_group and key in {*group, "step"}})
    if engine.lr_scheduler is not None and not same_rates:
        _advance(engine.lr_scheduler, step - saved["skipped_steps"])
    elif engine.lr_scheduler is not None and saved["scheduler"] is not None:
        engine.lr_scheduler.load_state_dict({**engine.lr_scheduler.state_dict(), **saved["scheduler"]})
    scale = saved["loss_scale"] or {}
    for holder in _loss_scalers(engine) if "cur_iter" in scale else ():
        for key, value in scale.items():
            if hasattr(holder, key):
                setattr(holder, key, value)
    engine.global_steps = step
    engine.global_samples = step * engine.train_batch_size()
    engine.micro_steps = step * engine.gradient_accumulation_steps()
    engine.skipped_steps = saved["skipped_steps"]


def _advance(scheduler: Any, steps: int) -> None:
    """Bring a schedule that has just been built to its state after some steps."""
    if type(scheduler) is LambdaLR and steps:  # It needs nothing but the step.
        scheduler.last_epoch, steps = steps - 1, 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch's schedules miss the optimizer's steps.
        for _ in range(steps):
            scheduler.step()


def _restored_number(key: str, entry: Mapping[str, Any], optimizer: Any, device: torch.device) -> Any:
    """Return a saved number as the optimizer keeps it: Adam's steps are an integer in DeepSpeed's, a tensor in torch's.

    Which of the two runs where the states are on the host depends on whether DeepSpeed's can be built there.
    """
    in_tensor, kind = entry["tensor"], type(optimizer).__name__
    if key == "step" and kind in ("Adam", "AdamW", "DeepSpeedCPUAdam"):
        in_tensor = kind != "DeepSpeedCPUAdam"
    if in_tensor:
        return torch.tensor(float(entry["value"]), device=device)
    return int(entry["value"]) if key == "step" else entry["value"]


def reset_states(engine: Any, pieces: Sequence[Piece], kind: str) -> None:
    """Set one state of the pieces' owners to zero, padding included; create it where it does not exist."""
    state = base_optimizer(engine).state
    for owner, _ in by_owner(pieces):
        if state[owner].get(kind) is None:
            state[owner][kind] = torch.zeros_like(owner, requires_grad=False)
        else:
            state[owner][kind].zero_()


def by_owner(pieces: Sequence[Piece]) -> list[tuple[torch.Tensor, list[Piece]]]:
    """Return the owners of the pieces, in the order in which they come first, each with its pieces."""
    found: dict[int, tuple[torch.Tensor, list[Piece]]] = {}
    for piece in pieces:
        found.setdefault(id(piece.owner), (piece.owner, []))[1].append(piece)
    return list(found.values())


def _loss_scalers(engine: Any) -> list[Any]:
    """Return the object that holds fp16's loss scale, if it changes; its place depends on the optimizer.

    ZeRO has a constant scale of 1 in other precisions; a run that goes on in another precision must not get it.
    """
    held = (getattr(engine.optimizer, name, None) for name in ("loss_scaler", "loss_scale_config"))
    holders = [holder for holder in held if hasattr(holder, "cur_scale")] or [engine.optimizer]
    return [holder for holder in holders if all(hasattr(holder, key) for key in ("cur_scale", "cur_iter"))]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (int, float)) for item in value)
    return isinstance(value, (bool, int, float, str))
