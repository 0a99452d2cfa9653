"""Compress a speech detector, deploy it to ONNX Runtime, and hold it against the dense one there, chunk by chunk.

With a published model and recordings of speech (WAV, mono, 16 bits), of which every fourth is kept for comparing:

    pip install 'btcompress[onnx]'
    pip install --no-deps --target silero silero-vad==6.2.3
    python speech_to_onnx.py silero/silero_vad/data/silero_vad_16k.safetensors recordings/*.wav

Without arguments a network of the same kind is trained first, on made-up audio. The network is in detector.py.
Writes inputs.npz, dense.onnx and small.onnx.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import btcompress
from detector import UNITS, Detector, heard, listen, made_up, recorded, train

INPUTS, OUTPUTS = ["chunk", "h", "c"], ["speech", "hn", "cn"]


def deployed(path: Path, streams: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float]:
    """Run a graph as a program without torch would: which chunks are speech, and the median seconds of one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found, took = [], []
    for stream in streams:
        h = c = np.zeros((1, UNITS), np.float32)
        for chunk in stream:
            begun = time.perf_counter()
            speech, h, c = session.run(OUTPUTS, {"chunk": chunk[None], "h": h, "c": c})
            took.append(time.perf_counter() - begun)
            found.append(speech[0] > 0.5)
    return np.array(found).reshape(streams.shape[:2]), float(np.median(took))


def main() -> None:
    """Get a dense model, compress it, export both, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", type=Path)
    parser.add_argument("recordings", nargs="*", type=Path)
    parser.add_argument("--ratio", type=float, default=4, help="how many times fewer parameters the LSTM gets")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    sounds = [recorded(path) for path in args.recordings] or [made_up(generator) for _ in range(40)]
    streams, speech = heard([sound for n, sound in enumerate(sounds) if n % 4], 16 if args.quick else 80, generator)
    held_back, truth = heard(sounds[::4], 4 if args.quick else 20, generator)
    dense = Detector()
    if args.weights is None:
        train(dense, streams, speech, updates=4 if args.quick else 60)
    else:
        dense.load_state_dict(load_file(args.weights))

    # What its LSTM gets as it runs, to fit the small one to.
    with torch.no_grad(), btcompress.recording(dense, "inputs.npz", force=True) as recording:
        listen(dense, streams)
    print(f"recorded inputs of {recording}")
    compressed = btcompress.factorize(
        dense,
        matrices=("input", "recurrent"),
        target_ratio=args.ratio,
        calibration=[btcompress.SampleInputs("inputs.npz")],
        calibration_epochs=1 if args.quick else 10,
    )
    small = btcompress.apply(Detector(), compressed)
    for matrix in btcompress.report(compressed).matrices:
        print(f"{matrix.name}: {matrix.params_after:,} parameters instead of {matrix.params_before:,}")

    results = []
    for network, path in ((dense, Path("dense.onnx")), (small, Path("small.onnx"))):
        example = (streams[:1, 0], torch.zeros(1, UNITS), torch.zeros(1, UNITS))
        graph = btcompress.export_onnx(network, example, path, input_names=INPUTS, output_names=OUTPUTS, force=True)
        decisions, seconds = deployed(path, held_back.numpy())
        print(f"{path}: {graph.n_bytes / 1000:,.0f} kB, a chunk of 32 ms takes {1e6 * seconds:.0f} us", end="")
        print("" if args.recordings else f", {(decisions == truth.numpy()).mean():.1%} of them are told right")
        results.append(decisions)
    alike = (results[0] == results[1]).mean()
    print(f"small.onnx decides as dense.onnx does on {alike:.1%} of {results[0].size:,} chunks held back")


if __name__ == "__main__":
    main()
