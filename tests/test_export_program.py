"""Programs that torch alone loads and runs."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import btcompress
from btcompress import BTCompressError, factorize
from btcompress.checkpoint import from_state_dict
from btcompress.errors import OutputError
from btcompress.export import program
from btcompress.export.modules import layer_module
from btcompress.export.targets import chosen_lstms

INPUTS, H = 12, 8
LSTMS = {
    "both": nn.LSTM(INPUTS, H, num_layers=2, bidirectional=True),
    "projected": nn.LSTM(INPUTS, H, proj_size=5, bias=False),
    "deep.cell": nn.LSTMCell(INPUTS, H),
}
OPTIONS = {"matrices": ("input", "recurrent"), "cp_rank": 1, "tucker_rank": 3, "allow_growth": True}

#: Run where the package cannot be imported: every program at other sizes, by plain torch.
RUN = """
import sys, warnings

class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "btcompress":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
try:
    import btcompress
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is here")
warnings.simplefilter("ignore")
import torch

for case in torch.load(sys.argv[1]):
    program = torch.export.load(case["path"]).module()
    with torch.no_grad():
        for inputs, expected in case["calls"]:
            torch.testing.assert_close(program(*inputs), expected)
assert not any(name.partition(".")[0] == "btcompress" for name in sys.modules)
print("done")
"""


def compressed_of(lstms, **options):
    state = {f"{name}.{key}": value for name, lstm in lstms.items() for key, value in lstm.state_dict().items()}
    return factorize(from_state_dict(state), **{**OPTIONS, **options})


def inputs_of(entry, steps, batch, *, batch_first=False, dtype=torch.float32):
    n = entry.num_layers * (1 + entry.bidirectional)
    x = torch.randn(*((batch, steps) if batch_first else (steps, batch)), entry.input_size, dtype=dtype)
    return x, *(torch.randn(n, batch, size, dtype=dtype) for size in (entry.proj_size or H, H))


def loaded(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_programs_run_where_this_package_is_not(tmp_path):
    compressed, cases = compressed_of(LSTMS), []
    written = btcompress.export_program(compressed, tmp_path / "out.pt2", batch_first=True)
    assert {each.path.name for each in written} == {f"out.{name}.pt2" for name in LSTMS}
    for entry, each in zip(chosen_lstms(compressed, None), written, strict=True):
        module, calls = layer_module(compressed, entry, batch_first=True), []
        for steps, batch in ((7, 4), (1, 1), (1, 3), (20, 1)):
            inputs = inputs_of(entry, steps, batch, batch_first=True)
            calls.append((inputs, module(*inputs)))
        cases.append({"path": str(each.path), "calls": calls})
    torch.save(cases, tmp_path / "cases.pt")
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "run.py", "cases.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.fixture(scope="module")
def lstm():
    torch.manual_seed(0)
    return nn.LSTM(64, 64)


def test_a_sequence_in_pieces_is_the_sequence(lstm, tmp_path):
    compressed = compressed_of({"net": lstm})
    (written,) = btcompress.export_program(compressed, tmp_path / "out.pt2")
    run, (x, h, c) = loaded(written.path), (torch.randn(9, 2, 64), *torch.randn(2, 1, 2, 64))
    y, hn, cn = run(x, h, c)
    pieces = []
    for piece in x.split([1, 5, 1, 2]):
        own, h, c = run(piece, h, c)
        pieces.append(own)
    torch.testing.assert_close((torch.cat(pieces), h, c), (y, hn, cn))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", ["both", "projected", "deep.cell"])
def test_programs_of_one_step_form_no_matrix(name, tmp_path):
    compressed = compressed_of({name: LSTMS[name]})
    (written,) = btcompress.export_program(compressed, tmp_path / "out.pt2", one_step=True)
    (entry,) = chosen_lstms(compressed, None)
    run, (x, h, c) = loaded(written.path), inputs_of(entry, 6, 3)
    _, hn, cn = layer_module(compressed, entry)(x, h, c)
    if name == "both":
        x, (_, hn, cn) = x[:1], layer_module(compressed, entry)(x[:1], h, c)
    for step in x.split(1):
        _, h, c = run(step, h, c)
    torch.testing.assert_close((h, c), (hn, cn))
    assert not any("lstm" in str(node.target) for node in run.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_programs_compute_in_the_dtype_of_the_lstm(dtype, tmp_path):
    small = nn.LSTM(INPUTS, H, dtype=dtype)
    (written,) = btcompress.export_program(compressed_of({"net": small}), tmp_path / "out.pt2")
    outputs = loaded(written.path)(torch.randn(3, 2, INPUTS, dtype=dtype), *torch.randn(2, 1, 2, H, dtype=dtype))
    assert {each.dtype for each in outputs} == {dtype}


def test_the_same_result_gives_the_same_bytes_and_holds_factors_alone(lstm, tmp_path):
    compressed = compressed_of({"net": lstm}, bits=8)
    paths = [tmp_path / name for name in ("a.pt2", "b.pt2")]
    written = [btcompress.export_program(compressed, path)[0] for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = {"btcompress": ""}
        parameters = torch.export.load(paths[0], extra_files=extra).state_dict.values()
    assert sum(each.numel() for each in parameters) == sum(each.numel() for each in compressed.tensors.values())
    record = json.loads(extra["btcompress"])
    assert record["lstm"] == "net"
    assert record["matrices"].keys() == {"weight_ih_l0", "weight_hh_l0"}
    assert written[0].n_bytes == paths[0].stat().st_size
    assert str(tmp_path.parent).encode() not in paths[0].read_bytes()


def test_a_program_that_computes_something_else_is_not_written(lstm, tmp_path, monkeypatch):
    taken = torch.export.load

    def wrong(*arguments, **options):
        found = taken(*arguments, **options)
        found.state_dict["layer.bias_ih_l0"].add_(0.01)
        return found

    monkeypatch.setattr(torch.export, "load", wrong)
    with pytest.raises(BTCompressError, match=r"outputs are off by .* nothing was written"):
        btcompress.export_program(compressed_of({"net": lstm}), tmp_path / "out.pt2")
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_export_is_told(lstm, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no such operation\nmore")

    monkeypatch.setattr(program.torch.export, "export", fails)
    with pytest.raises(BTCompressError, match=r"torch cannot export net \(no such operation\), so nothing"):
        btcompress.export_program(compressed_of({"net": lstm}), tmp_path / "out.pt2")
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_kept(lstm, tmp_path):
    (tmp_path / "out.pt2").write_text("kept")
    with pytest.raises(OutputError, match="already exists"):
        btcompress.export_program(compressed_of({"net": lstm}), tmp_path / "out.pt2")
    assert (tmp_path / "out.pt2").read_text() == "kept"
    btcompress.export_program(compressed_of({"net": lstm}), tmp_path / "out.pt2", force=True)
    assert (tmp_path / "out.pt2").read_bytes()[:2] == b"PK"
