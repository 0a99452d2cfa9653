"""What someone does first who has just installed the package, without any extra; run by the environment's Python."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import btcompress


class Tagger(nn.Module):
    """Tags of each step of a sequence."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(48, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, inputs):
        return self.head(self.lstm(inputs)[0])


def command(*arguments, code=0):
    """Both outputs of the command, which must end with this code."""
    script = Path(sys.executable).parent / "btcompress"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
    expect(done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def expect(what, otherwise):
    if not what:
        raise SystemExit(otherwise)


def main():
    expect(Path(btcompress.__file__).is_relative_to(sys.prefix), f"{btcompress.__file__} is not the installed one")
    version = importlib.metadata.version("btcompress")
    expect(command("--version")[0] == f"btcompress {version}\n", "--version is not that of the metadata")
    torch.manual_seed(0)
    model = Tagger()
    torch.save(model.state_dict(), "model.pt")

    command("factorize", "model.pt", "--cp-rank", "2", "--tucker-rank", "3")
    result = "model.bt.safetensors"
    told = json.loads(command("report", result, "--json")[0])
    compressed = btcompress.load(result)
    expect(told["model"]["params_after"] == compressed.n_params < told["model"]["params_before"], f"wrong: {told}")

    dense = Tagger()
    dense.load_state_dict(btcompress.to_dense(result))
    small = btcompress.apply(Tagger(), result)
    expect(isinstance(small.lstm, btcompress.BTLSTM), f"nothing was applied: {small}")
    inputs = torch.randn(7, 3, 48)
    torch.testing.assert_close(small(inputs), dense(inputs), rtol=1e-4, atol=1e-5)

    command("export", result, "--to", "dense", "--output", "dense.pt")
    exported = torch.load("dense.pt", weights_only=True)
    expect(list(exported) == list(model.state_dict()), f"other keys: {list(exported)}")
    for key, tensor in dense.state_dict().items():
        torch.testing.assert_close(exported[key], tensor, rtol=0, atol=0)

    lacks("onnx", "onnx", "export", result, "--to", "onnx", "--output", "model.onnx")
    lacks("page", "matplotlib", "report", result, "--html", "report.html")
    lacks("demo", "sklearn", "demo", "--task", "images", "--output", "demo")


def lacks(extra, module, *arguments):
    """A command that needs an extra says so in one line, and writes nothing."""
    expect(importlib.util.find_spec(module) is None, f"{module} is there, though no extra was installed")
    before = set(Path().iterdir())
    told = " ".join(command(*arguments, code=2)[1].split())
    expect(f"pip install 'btcompress[{extra}]'" in told, f"{arguments} does not name the extra {extra}: {told}")
    expect(set(Path().iterdir()) == before, f"{arguments} left something behind")


if __name__ == "__main__":
    main()
