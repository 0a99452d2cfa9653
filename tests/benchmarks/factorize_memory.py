"""Peak memory of the whole ``factorize`` command on a large checkpoint, beyond what importing torch costs.

    python tests/benchmarks/factorize_memory.py
    python tests/benchmarks/factorize_memory.py --inputs 1024 --hidden 256 --others 4000

The checkpoint is one LSTM of 100,352 inputs and 256 hidden units (411 MB of float32), the largest case in
the introduction of Ye et al. 2018; the second call has an ordinary LSTM in a file of 4 GB, most of which is other
tensors. Memory is the largest resident set the operating system saw of each process, so the pages of the
memory-mapped checkpoint count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file


def peak_bytes(*command: str) -> tuple[int, float]:
    """Peak resident set in bytes, and seconds, of a command in a process of its own."""
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    return int(done.stdout), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_352)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--format", choices=("safetensors", "torch"), default="safetensors")
    parser.add_argument("--others", type=int, default=0, help="further tensors beside the LSTM, in MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        generator = torch.Generator().manual_seed(0)
        rows, hidden = 4 * arguments.hidden, arguments.hidden
        sizes = {"weight_ih_l0": (rows, arguments.inputs), "weight_hh_l0": (rows, hidden), "bias_ih_l0": (rows,)}
        state = {f"lstm.{name}": torch.randn(size, generator=generator) for name, size in sizes.items()}
        state["lstm.bias_hh_l0"] = torch.zeros(rows)
        for n in range(arguments.others // 50):
            state[f"layers.{n}.weight"] = torch.randn(2500, 5000, generator=generator)
        save_file(state, path) if arguments.format == "safetensors" else torch.save(state, path)
        del state
        size = path.stat().st_size
        importing, _ = peak_bytes(sys.executable, "-c", "import torch")
        command = (sys.executable, "-m", "btcompress", "factorize", str(path), "--cp-rank", "2", "--tucker-rank", "4")
        factorizing, seconds = peak_bytes(*command)
    result = {
        "checkpoint_bytes": size,
        "import_torch_bytes": importing,
        "factorize_bytes": factorizing,
        "ratio": (factorizing - importing) / size,
        "beyond_importing_bytes": factorizing - importing,
        "seconds": seconds,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
