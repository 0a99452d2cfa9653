"""Data files that nobody vouches for: NumPy's numbers or one line, whatever is in them."""

import io
import os
import random
import struct
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load
from safetensors.torch import save_file as save_tensors

from btcompress import memory
from btcompress.errors import BTCompressError, MemoryLimitError
from btcompress.finetune.arrayfiles import read_arrays
from btcompress.finetune.data import open_data
from tuning import draw

NAMES = ("x", "y", "lengths")
ARRAYS = {"x": draw(3, 4, 2), "y": np.arange(3), "lengths": np.array([1, 4, 2])}
#: More than is read at once of a header, which would be compared as it is read.
LARGE = draw(20, 40, 20)
KINDS = ("stored.npz", "deflated.npz", "array.npy", "arrays.safetensors", "array.npz with its checksum right")
N_MUTANTS = 800


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_of(header, data=b"", version=1):
    """An array in NumPy's format with any header."""
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def header(descr="'<f4'", shape="(3, 4, 2)", fortran="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode()


def zipped(compression=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def original(kind):
    file = io.BytesIO()
    if kind == "arrays.safetensors":
        return b"", lambda path: save_file(ARRAYS, path)
    if kind.startswith("array.np"):
        return npy(ARRAYS["x"]), None
    (np.savez if kind.startswith("stored") else np.savez_compressed)(file, **ARRAYS)
    return file.getvalue(), None


def mutant(data, chance):
    """The same bytes with a few flipped, replaced, moved, cut off or put in."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start = chance.randrange(len(data))
        end = start + chance.randrange(1, 9)
        what = chance.randrange(6)
        if what == 0:
            data[start] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[start] = chance.choice((0, 127, 128, 255, chance.randrange(256)))
        elif what == 2:
            data[start:end] = bytes(chance.choice((0, 1, 255)) for _ in data[start:end])
        elif what == 3:
            data[start:start] = chance.randbytes(end - start)
        elif what == 4:
            other = chance.randrange(len(data))
            data[start:end] = data[other : other + end - start]
        elif start:
            del data[start:]
    return bytes(data)


def reference(suffix, data):
    """The arrays as the libraries read them from these bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if suffix == ".npy":
            return {"x": np.load(io.BytesIO(data))}
        if suffix == ".npz":
            with np.load(io.BytesIO(data)) as arrays:
                return {name: arrays[name] for name in NAMES if name in arrays.files}
        tensors = {name: tensor for name, tensor in load(data).items() if name in NAMES}
        small = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
        return {name: (t.float() if t.dtype in small else t).numpy() for name, t in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_the_numbers_that_numpy_reads_or_one_line(kind, tmp_path):
    chance = random.Random(kind)
    data, save = original(kind)
    path = tmp_path / f"data.{kind.split()[0].split('.')[-1]}"
    if save is not None:
        save(path)
        data = path.read_bytes()
    n_read, told = 0, []
    for _ in range(N_MUTANTS):
        damaged = mutant(data, chance)
        if kind.endswith("right"):
            damaged = zipped(chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), x=damaged)
        path.write_bytes(damaged)
        try:
            found, _ = read_arrays(path, NAMES)
        except BTCompressError as error:
            told.append(str(error))
            continue
        wanted = reference(path.suffix, damaged)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
        n_read += 1
    assert n_read > 20
    assert all(len(text) < 600 and "\n" not in text for text in told)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_whose_checksum_is_wrong_is_refused(compression, tmp_path):
    data = bytearray(zipped(compression, x=npy(LARGE)))
    crc = struct.pack("<I", zlib.crc32(npy(LARGE)))
    assert data.count(crc) == 2  # in the local header and in the central one, which is the one that counts
    position = data.rindex(crc)
    data[position : position + 4] = struct.pack("<I", 1)
    path = tmp_path / "data.npz"
    path.write_bytes(data)
    with pytest.raises(BTCompressError, match="CRC"):
        open_data(str(path))


def test_one_wrong_bit_in_numbers_that_would_be_mapped_is_found(tmp_path):
    np.savez(tmp_path / "data.npz", x=LARGE)
    data = bytearray((tmp_path / "data.npz").read_bytes())
    data[data.index(LARGE.tobytes()) + LARGE.nbytes - 50] ^= 1
    (tmp_path / "data.npz").write_bytes(data)
    with pytest.raises(BTCompressError, match="CRC"):
        open_data(str(tmp_path / "data.npz"))


def test_an_archive_behind_other_bytes_is_refused_as_numpy_does(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"#!/bin/sh\n" + zipped(x=npy(ARRAYS["x"])))
    with pytest.raises(BTCompressError, match="does not begin as an archive"):
        open_data(str(tmp_path / "data.npz"))


def test_members_that_are_there_twice_are_refused(tmp_path):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", npy(ARRAYS["x"]))
        archive.writestr("x.npy", npy(ARRAYS["x"] + 1))
    (tmp_path / "data.npz").write_bytes(file.getvalue())
    with pytest.raises(BTCompressError, match="holds x 2 times"):
        open_data(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("seekable", [True, False], ids=["sizes in front", "sizes behind"])
def test_archives_of_every_layout_are_mapped_where_their_numbers_lie(seekable, tmp_path):
    class Stream(io.BytesIO):
        def seekable(self):
            return seekable

        def seek(self, *arguments):
            return super().seek(*arguments) if seekable else self.refuse()

        def tell(self):
            return super().tell() if seekable else self.refuse()

        def refuse(self):
            raise OSError("a pipe")

    file = Stream()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in ARRAYS.items():
            archive.writestr(f"{name}.npy", npy(array))
    (tmp_path / "data.npz").write_bytes(file.getvalue())
    data = open_data(str(tmp_path / "data.npz"))
    for name, array in ARRAYS.items():
        assert isinstance(getattr(data, name), np.memmap)
        np.testing.assert_array_equal(getattr(data, name), array)


DTYPES = ["<f2", "<f4", "<f8", ">f4", ">f8", "|b1", "|i1", "|u1", "<i2", ">i2", "<u2", "<i4", ">i8", "<u8", "<f16"]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_real_dtype_gives_its_own_numbers(dtype, suffix, tmp_path):
    x = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    path = tmp_path / f"data{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, **{"arr" if suffix == ".npy" else "x": x})
    batch = open_data(str(path)).batch(torch.tensor([1]))
    wide = np.dtype(dtype).kind == "f" and np.dtype(dtype).itemsize >= 8
    assert batch.x.dtype == (torch.float64 if wide else torch.float32)
    assert batch.x[0].tolist() == x[1].astype(float).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_dtypes_of_safetensors_that_numpy_lacks_are_widened(dtype, tmp_path):
    x = torch.tensor([0.5, -1.5, 3.0, 0.25]).reshape(1, 2, 2)
    save_tensors({"x": x.to(dtype)}, tmp_path / "data.safetensors")
    assert torch.equal(open_data(str(tmp_path / "data.safetensors")).batch(torch.tensor([0])).x, x)
    with memory.limited(10), pytest.raises(MemoryLimitError, match="x would take 16 bytes"):
        open_data(str(tmp_path / "data.safetensors"))


@pytest.mark.parametrize(
    "y",
    [
        np.array(["a", "b", "c"]),
        np.array([b"a", b"b", b"c"]),
        np.array([1j, 2, 3]),
        np.array([1, 2, 3], "datetime64[s]"),
        np.array([1, 2, 3], "timedelta64[s]"),
        np.zeros(3, [("a", "<i4"), ("b", "<f4")]),
        np.zeros(3, "V4"),
        np.array([{}, {}, {}]),
        np.array(1),
        np.zeros((3, 0)),
        np.array([0, 1, 2**63], "<u8"),
    ],
    ids=lambda y: f"{y.dtype.str} {y.shape}",
)
def test_labels_that_are_no_numbers_for_each_sequence_are_refused(y, tmp_path):
    np.savez(tmp_path / "data.npz", x=ARRAYS["x"], y=y)
    with pytest.raises(BTCompressError, match=r"data\.npz"):
        open_data(str(tmp_path / "data.npz"))


@pytest.mark.parametrize(
    "lengths", [np.zeros((3, 0), int), np.ones((3, 1), int), np.ones(3, bool), np.ones(3), np.array([1, 2, 2**64 - 1])]
)
def test_lengths_that_are_not_one_whole_number_each_are_refused(lengths, tmp_path):
    np.savez(tmp_path / "data.npz", x=ARRAYS["x"], lengths=lengths)
    with pytest.raises(BTCompressError, match="one whole number from 1 to 4"):
        open_data(str(tmp_path / "data.npz"))


HEADERS = {
    "huge": header(shape=f"({10**18}, 4, 2)"),
    "overflowing": header(shape=f"({2**40}, {2**40}, 2)"),
    "overflowing to the right number": header(shape=f"({2**62}, 4, 6)"),
    "negative": header(shape="(-3, -4, 2)"),
    "many axes": header(shape=f"({'1, ' * 100})"),
    "of half an axis": header(shape="(3.0, 4, 2)"),
    "digits": header(shape=f"({'9' * 5000}, 4, 2)"),
    "code": header(descr="__import__('os').system('true')"),
    "object": header(descr="'|O'"),
    "structured": header(descr="[('a', '<f4')]"),
    "subarray": header(descr="('<f4', (3,))"),
    "comma": header(descr="'f4,f4'"),
    "deep": b"(" * 9000,
    "deep signs": b"-" * 9000 + b"1",
    "unclosed": b"{'descr': '''",
    "no text": b"\xff\xfe\x00\x00",
    "not a dictionary": b"[1, 2]",
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie_are_refused_at_once(case, version, tmp_path):
    data = npy_of(HEADERS[case], ARRAYS["x"].tobytes(), version)
    for name, content in (("data.npy", data), ("data.npz", zipped(x=data)), ("flat.npz", zipped(8, x=data))):
        (tmp_path / name).write_bytes(content)
        started = time.perf_counter()
        with pytest.raises(BTCompressError, match=name):
            open_data(str(tmp_path / name))
        assert time.perf_counter() - started < 1


def test_a_header_that_claims_gigabytes_of_itself_is_not_read(tmp_path):
    with (tmp_path / "data.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1))
        file.truncate(2**32 + 100)
    started = time.perf_counter()
    with pytest.raises(BTCompressError, match="header"):
        open_data(str(tmp_path / "data.npy"))
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("version", [1, 2, 3])
def test_arrays_of_every_version_are_read(version, tmp_path):
    data = npy_of(header(), ARRAYS["x"].tobytes(), version)
    (tmp_path / "data.npy").write_bytes(data)
    assert np.array_equal(open_data(str(tmp_path / "data.npy")).x, ARRAYS["x"])


def test_a_compressed_array_that_would_not_fit_is_refused_before_it_is_loaded(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((100, 100, 100), np.float32))
    with memory.limited(10**6), pytest.raises(MemoryLimitError, match=r"x would take 4\.0 MB"):
        open_data(str(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", x=np.zeros((100, 100, 100), np.float32))
    with memory.limited(10**6):
        open_data(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_does_not_write_is_refused(compression, tmp_path):
    (tmp_path / "data.npz").write_bytes(zipped(compression, x=npy(ARRAYS["x"])))
    with pytest.raises(BTCompressError, match="NumPy does not write"):
        open_data(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(suffix, tmp_path):
    pipe, folder, link = (tmp_path / f"{name}{suffix}" for name in ("pipe", "folder", "link"))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    device = tmp_path / f"zero{suffix}"
    device.symlink_to("/dev/zero")
    endless = tmp_path / f"{'n' * 300}{suffix}"
    for path in (pipe, folder, link, device, endless, f"{tmp_path}/nul\0{suffix}", f"{'n' * 300}:f"):
        with pytest.raises(BTCompressError, match=r"cannot be read|no module"):
            open_data(str(path))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_a_file_that_is_replaced_or_removed_while_it_is_in_use_does_no_harm(suffix, tmp_path):
    path, other = tmp_path / f"data{suffix}", tmp_path / "other"
    if suffix == ".safetensors":
        save_file({"x": ARRAYS["x"]}, path)
    else:
        (np.save if suffix == ".npy" else np.savez)(path, **{"arr" if suffix == ".npy" else "x": ARRAYS["x"]})
    data, rows = open_data(str(path)), torch.tensor([0])
    data.batch(rows)
    other.write_bytes(b"another file")
    other.replace(path)
    assert torch.equal(data.batch(rows).x[0], torch.from_numpy(ARRAYS["x"][0]))
    path.unlink()
    data.batch(rows)


def test_a_file_that_is_cut_short_while_it_is_in_use_is_found_out(tmp_path):
    np.savez(tmp_path / "data.npz", x=ARRAYS["x"])
    data = open_data(str(tmp_path / "data.npz"))
    os.truncate(tmp_path / "data.npz", 10)
    with pytest.raises(BTCompressError, match="was changed while it was being read"):
        data.batch(torch.tensor([0]))


def test_numbers_that_become_infinite_by_the_scale_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.full((1, 2, 3), 3e38, np.float32))
    with pytest.raises(BTCompressError, match="too large to scale"):
        open_data(str(tmp_path / "data.npz"), 10.0).batch(torch.tensor([0]))
