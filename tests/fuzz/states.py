"""States of interrupted trainings: sound ones, damaged ones that bear a right digest all the same, and their check."""

import hashlib
import json
import math
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import safetensors.torch
import torch

from btcompress.finetune import state as states
from btcompress.finetune.epoch import Epoch
from fuzz import readings
from fuzz.files import WrongAnswerError, placed, reading, same
from fuzz.mutators import odd, raw
from fuzz.mutators import safetensors as headers

MARK = "btcompress-training-state"
FILE = "tuned.safetensors.state"

_IDENTITY = {"epochs": 3, "seed": 1, "layer": None, "scale": 1.0, "contents of --data": "ab" * 32}
_SHAPES = {"w": (4, 3), "b": (4,), "count": ()}


def _tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in _SHAPES.items()}


def _outline():
    network = _tensors(0)
    return states.Outline(network, [network["w"], network["b"]], 3, 5)


@cache
def state_files():
    """States after one and after two epochs, with and without an optimizer's tensors for each parameter."""
    files = {}
    for n in (1, 2):
        rows = [Epoch(epoch, 3, 0.5, 0.25, 1e-3, 1.5, 2.0, 10.0) for epoch in range(1, n + 1)]
        moments = {i: _moments(name, n) for i, name in enumerate(("w", "b")[:n])}
        state = states.TrainingState(
            rows, 0.125, _tensors(1), _tensors(2), moments, states.Scaler(2.0, 3) if n == 2 else None
        )
        with tempfile.TemporaryDirectory() as folder:
            file = states.StateFile(Path(folder) / FILE.removesuffix(".state"), _IDENTITY)
            file.save(state)
            files[f"{n} epochs"] = file.path.read_bytes()
    return files


def _moments(name, n):
    return {
        "step": torch.tensor(5.0 * n),
        "exp_avg": torch.ones(_SHAPES[name]),
        "exp_avg_sq": torch.ones(_SHAPES[name]),
    }


_damaged = headers.described(MARK)


def mutate(data, rng):
    """A change under the seal, or a plain one."""
    try:
        if rng.random() < 0.6:
            return _sealed_again(data, rng)
    except (readings.UnreadableError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return _damaged(data, rng)


def _sealed_again(data, rng):
    tensors, about = readings.safetensors(data)
    record = json.loads(about[MARK])["record"]
    text = json.dumps(record, separators=(",", ":"))
    if rng.random() < 0.7:
        text = odd.edited_json(text, rng)
    else:
        name = rng.choice(list(tensors))
        dtype, shape, content = tensors.pop(name)
        if (action := rng.randrange(4)) == 0:
            content = raw.mutate(content, rng)[: len(content)].ljust(len(content), b"\0")
        elif action == 1:
            shape = shape[::-1]
        elif action == 2:
            dtype = {"torch.float32": "torch.int32"}.get(dtype, dtype)
        if action != 3:
            tensors[name] = dtype, shape, content
            if rng.random() < 0.3:
                tensors[rng.choice(odd.NAMES)] = tensors.pop(name)
    sealed = '{"sha256":"' + digest(text, tensors) + '","record":' + text + "}"
    plain = {
        name: torch.frombuffer(bytearray(content), dtype=getattr(torch, dtype[6:])).reshape(shape)
        for name, (dtype, shape, content) in tensors.items()
    }
    return safetensors.torch.save(plain, {MARK: sealed})


def digest(text, tensors):
    """The seal of a record and of tensors, as read independently."""
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        dtype, shape, content = tensors[name]
        sha256.update(f"\n{name} {(getattr(torch, dtype[6:]), shape)}\n".encode() + content)
    return sha256.hexdigest()


def check(data, folder):
    """A state, read to go on with."""
    placed(folder, FILE, data)
    file = states.StateFile(folder / FILE.removesuffix(".state"), _IDENTITY)
    file.check(force=False, resume=True)
    _, found = file.load(_outline())
    with reading():
        tensors, about = readings.safetensors(data)
        text = about[MARK]
        sealed = json.loads(text, parse_constant=readings.refuse_constant)
        record = sealed["record"]
    same(record["version"], 2, "the version")
    start = text.index('"record":') + len('"record":')
    _, end = json.JSONDecoder().raw_decode(text, start)
    same(sealed["sha256"], digest(text[start:end], tensors), "the digest")
    same(record["identity"], _IDENTITY, "the identity")
    rows = [{name: float(number) for name, number in row.items()} for row in record["rows"]]
    same([asdict(row) for row in found.rows], rows, "the rows")
    same([row.epoch for row in found.rows], list(range(1, len(found.rows) + 1)), "the numbers of epochs")
    same(found.before, float(record["before"]), "the metric before")
    same({name: readings.values(tensor) for name, tensor in found.tensors.items()}, tensors, "the tensors")
    if not all(math.isfinite(number) for row in found.rows for number in (row.loss, row.metric, row.cancellation)):
        raise WrongAnswerError("accepted numbers that are not finite")
