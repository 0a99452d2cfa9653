"""How often a model decides as its dense one does where ONNX Runtime runs its LSTM, in floats and in integers, as JSON.

    python tests/benchmarks/onnx_decisions.py MODEL weights result.safetensors test.npz decisions.json

MODEL is one of ``decisions.py``, which has their heads. The dense ``LSTM`` operator runs as it is, and in integers as
ONNX Runtime's quantizer makes them, with a scale for each matrix or for each row of it; ours as ``btcompress export``
writes it, without ``--int8``, with it, and with it in the operator. Inputs are rounded by the range that they have in a
run, so all of this is measured for several numbers of sequences in a run. Nothing may have been fitted to ``test.npz``.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from decisions import DECISIONS, measured
from torch import Tensor, nn

from btcompress import load
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, read
from btcompress.export import GraphRequest, export_graphs
from btcompress.export.checking import session
from btcompress.export.graphfiles import graph_of
from btcompress.export.quiet import without_logs
from btcompress.export.weights import Weights
from btcompress.finetune.data import open_data
from btcompress.finetune.networks import choose_dense_lstm, teacher_of


class InRuntime(nn.Module):
    """A graph, called as the networks that :func:`decisions.measured` takes are; states begin as zeros.

    Args:
        path: its file; inputs are ``(B, T, I)``.
        batch: the most sequences in a run.
    """

    def __init__(self, path: Path, batch: int) -> None:
        super().__init__()
        self.session, self.batch = session(path, threads=1), batch
        self.inputs = {each.name: each.shape for each in self.session.get_inputs()}

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor]:
        """Hidden states, shape ``(B, T, H)``, of inputs, shape ``(B, T, I)``."""
        pairs = zip(x.split(self.batch), lengths.split(self.batch), strict=True)
        return (torch.cat([self._run(*pair) for pair in pairs]),)

    def _run(self, x: Tensor, lengths: Tensor) -> Tensor:
        states = [torch.zeros(self.inputs[name][0], len(x), self.inputs[name][2]) for name in ("h0", "c0")]
        feed = dict(zip(("x", "h0", "c0", "lengths"), (x, *states, lengths), strict=True))
        return torch.from_numpy(self.session.run(["y"], {name: feed[name].numpy() for name in self.inputs})[0])


def dense_graphs(dense: Checkpoint, request: GraphRequest, folder: Path) -> dict[str, Path]:
    """The dense operator in floats, and in integers both ways."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    lstm = teacher_of(dense, choose_dense_lstm(dense, None, ""), torch.float32).layer
    files = {"dense": folder / "dense.onnx"}
    proto, _, _ = graph_of(Weights.of_module("", lstm), replace(request, form="lstm"))
    files["dense"].write_bytes(proto.SerializeToString())
    for way, per_channel in (("dense, int8 by matrix", False), ("dense, int8 by row", True)):
        files[way] = folder / f"{way}.onnx"
        with without_logs():
            quantize_dynamic(files["dense"], files[way], per_channel=per_channel, weight_type=QuantType.QInt8)
    return files


def own_graphs(compressed: CompressedCheckpoint, request: GraphRequest, folder: Path) -> dict[str, Path]:
    """Ours in floats, in integers, and in integers in the operator."""
    requests = {"ours": request, "ours, int8": replace(request, int8=True)}
    requests["ours, int8, lstm"] = replace(request, int8=True, form="lstm")
    return {way: export_graphs(compressed, folder / f"{way}.onnx", own)[0].path for way, own in requests.items()}


def main() -> None:
    """Read the arguments, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DECISIONS)
    for file in ("weights", "result", "test", "json"):
        parser.add_argument(file, type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="sequences in a run, 32 at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dense, compressed, test, rows = read(args.weights), load(args.result), open_data(str(args.test)), []
    first = test.batch(torch.tensor([0]))
    for batch in args.batch:
        lengths = first.lengths is not None
        request = GraphRequest(batch=batch, steps=first.x.shape[1], lengths=lengths, batch_first=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = dense_graphs(dense, request, folder) | own_graphs(compressed, request, folder)
            for way, path in files.items():
                figures = measured(args.name, dense, InRuntime(path, batch), test)
                rows.append({"way": way, "batch": batch, "bytes": path.stat().st_size, **figures})
                print(json.dumps(rows[-1]), flush=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
