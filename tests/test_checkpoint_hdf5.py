"""HDF5 files from elsewhere: plain tensors are read, all else is refused in words, and no file ends the process."""

import io
import json
import signal
import struct
import zipfile

import h5py
import numpy as np
import pytest
import torch

from btcompress.checkpoint import hdf5files, hdf5listing, kerasfiles, read
from btcompress.errors import CheckpointError, MemoryLimitError
from btcompress.memory import limited

KERNEL = np.arange(12, dtype="f4").reshape(3, 4)


@pytest.fixture
def here(monkeypatch):
    """Files are described in this process, which is quicker: none of these takes it down."""

    def answer(path, start, size):
        return json.dumps(hdf5listing.answer(str(path), start, size)).encode()

    monkeypatch.setattr(hdf5files, "_answer", answer)


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def external(file):
    file["x"] = h5py.ExternalLink("/etc/hostname", "/y")


def soft(file):
    file["x"] = h5py.SoftLink("/dense/kernel:0")


def soft_circle(file):
    file["x"] = h5py.SoftLink("/x")


def circle(file):
    file["dense/again"] = file["dense"]


def twice(file):
    file["x"] = file["dense"]


def deep(file):
    file["/".join("a" * 80)] = KERNEL


def virtual(file):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "y", (3, 4))
    file.create_virtual_dataset("x", layout)


def elsewhere(file):
    file.create_dataset("x", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def in_chunks(file):
    file.create_dataset("x", data=KERNEL, chunks=(1, 4), compression="gzip")


def with_a_plugin(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3, 4))
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3, 4)), plist)


def in_its_header(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((3, 4))
    h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist).write(space, space, KERNEL)


def texts(file):
    file.create_dataset("x", data=["a", "b"], dtype=h5py.string_dtype())


def references(file):
    file.create_dataset("x", (1,), h5py.ref_dtype)


def fields(file):
    file.create_dataset("x", (2,), np.dtype([("a", "f4"), ("b", "i4")]))


def big_endian(file):
    file["x"] = KERNEL.astype(">f4")


def odd_floats(file):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 20, 11, 0, 20)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((3, 4)))


def opaque(file):
    file["x"] = KERNEL.astype("f2").view("V2")


def without_a_shape(file):
    file["x"] = h5py.Empty("f4")


def never_written(file):
    file.create_dataset("x", (2**40, 2**20), "f4")


def a_type_alone(file):
    file["x"] = np.dtype("f4")


HOSTILE = {
    external: "a link to another file at x",
    soft: "a soft link at x",
    soft_circle: "a soft link at x",
    circle: "twice, in a circle or too deep, at dense/again",
    twice: "twice, in a circle or too deep, at x",
    deep: "twice, in a circle or too deep",
    virtual: "made of others",
    elsewhere: "lie in another file: x",
    in_chunks: "in chunks, packed",
    with_a_plugin: "in chunks, packed",
    in_its_header: "in its own header: x",
    texts: "text or objects: x",
    references: "text or objects: x",
    fields: "text or objects: x",
    big_endian: "a dtype that is not read",
    odd_floats: "a dtype that is not read",
    opaque: "a dtype that is not read",
    without_a_shape: "without a shape: x",
    never_written: "no data were written for: x",
    a_type_alone: "neither a group nor a tensor at x",
}


@pytest.mark.parametrize("add", HOSTILE, ids=lambda add: add.__name__)
def test_what_is_no_plain_tensor_is_refused(add, tmp_path, here):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["dense/kernel:0"] = KERNEL
        add(file)
    assert HOSTILE[add] in refusal(path)


def one(path, **values):
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[f"a/{name}"] = value


def test_every_dtype_of_torch_is_read(tmp_path, here):
    values = {kind: np.ones((2, 3), kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "?")}
    values |= {"single": np.float32(3), "empty": np.ones((0, 3), "f4")}
    one(tmp_path / "m.h5", **values)
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file["a/b"] = torch.full((2, 3), 1.5, dtype=torch.bfloat16).view(torch.int16).numpy().view("V2")
        file["a/b"].attrs["dtype"] = "bfloat16"
    found = read(tmp_path / "m.h5").tensors
    for name, value in values.items():
        assert np.array_equal(found[f"a/{name}"].numpy(), value), name
        assert found[f"a/{name}"].numpy().dtype == value.dtype
    assert torch.equal(found["a/b"], torch.full((2, 3), 1.5, dtype=torch.bfloat16))


def test_a_tensor_under_two_names_is_one(tmp_path, here):
    one(tmp_path / "m.h5", x=KERNEL)
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file["b/x"] = file["a/x"]
    found = read(tmp_path / "m.h5")
    assert found.source.n_params == 12
    assert sorted(found.tensors) == ["a/x", "b/x"]


def replaced(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(("add", "words"), [(4, "data of two tensors overlap"), (2**40, "is damaged")])
def test_data_lie_in_the_file_and_apart(add, words, tmp_path, here):
    path = tmp_path / "m.h5"
    one(path, x=KERNEL, y=KERNEL)
    with h5py.File(path) as file:
        first, second = (file[f"a/{name}"].id.get_offset() for name in "xy")
    replaced(path, struct.pack("<QQ", second, KERNEL.nbytes), struct.pack("<QQ", first + add, KERNEL.nbytes))
    assert words in refusal(path)


def test_a_shape_that_the_data_are_too_small_for_is_refused(tmp_path, here):
    path = tmp_path / "m.h5"
    one(path, x=np.ones((3, 1237), "f4"))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<Q", 1237), struct.pack("<Q", 2**40)))
    assert "damaged" in refusal(path) or "do not lie where they should" in refusal(path)


def test_files_that_end_early_are_refused(tmp_path, here):
    path = tmp_path / "m.h5"
    one(path, x=KERNEL, y=np.ones(50, "f4"))
    content = path.read_bytes()
    for end in range(8, len(content) - 1, 331):
        path.write_bytes(content[:end])
        assert "damaged" in refusal(path)


def test_a_file_without_weights_is_refused(tmp_path, here):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["optimizer_weights/adam"] = KERNEL
    assert "holds no weights" in refusal(tmp_path / "m.h5")


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, content in members.items():
            packed.writestr(name, content)


def content_of(**values):
    content = io.BytesIO()
    one(content, **values)
    return content.getvalue()


def test_a_damaged_archive_is_found_by_its_checksums(tmp_path, here):
    path = tmp_path / "m.keras"
    archive(path, {"config.json": "{}", "model.weights.h5": content_of(x=KERNEL)})
    assert torch.equal(read(path).tensors["a/x"], torch.as_tensor(KERNEL))
    replaced(path, KERNEL.tobytes(), KERNEL[::-1].tobytes())
    assert "checksum" in refusal(path)


def test_weights_in_several_parts_are_refused(tmp_path, here):
    archive(tmp_path / "m.keras", {"a_00000.weights.h5": b"x", "a_00001.weights.h5": b"x"})
    assert "2 parts" in refusal(tmp_path / "m.keras")


@pytest.mark.parametrize("weights", [{"a/x": "m_00000.weights.h5"}, {"/layers/lstm/vars": ["m_00000.weights.h5"]}])
def test_an_index_of_such_files_is_refused(weights, tmp_path):
    (tmp_path / "m.weights.json").write_text(json.dumps({"weight_map": weights}))
    one(tmp_path / "m_00000.weights.h5", x=KERNEL)
    assert "in one file" in refusal(tmp_path / "m.weights.json")


def test_what_is_packed_asks_for_memory_first(tmp_path, here):
    path = tmp_path / "m.keras"
    archive(path, {"model.weights.h5": content_of(x=np.zeros(2**20, "f4"))}, zipfile.ZIP_DEFLATED)
    with limited(2**20), pytest.raises(MemoryLimitError, match=r"model\.weights\.h5"):
        read(path)


def test_a_configuration_without_end_is_refused(tmp_path, here, monkeypatch):
    monkeypatch.setattr(kerasfiles, "_MOST_CONFIG", 10)
    archive(tmp_path / "m.keras", {"config.json": " " * 11, "model.weights.h5": content_of(x=KERNEL)})
    assert "config.json has 11 bytes" in refusal(tmp_path / "m.keras")


def test_links_beyond_number_are_refused(tmp_path, here, monkeypatch):
    monkeypatch.setattr(hdf5listing, "_MOST_LINKS", 3)
    one(tmp_path / "m.h5", x=KERNEL, y=KERNEL, z=KERNEL)
    assert "more than 3 links" in refusal(tmp_path / "m.h5")


# The process of its own


@pytest.mark.parametrize(
    "program", [f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "while True: pass", "print('no JSON')"]
)
def test_a_library_that_breaks_down_takes_nothing_with_it(program, tmp_path, monkeypatch):
    one(tmp_path / "m.h5", x=KERNEL)
    (tmp_path / "broken.py").write_text(program)
    monkeypatch.setattr(hdf5listing, "__file__", str(tmp_path / "broken.py"))
    monkeypatch.setattr(hdf5files, "_PATIENCE", 0.5)
    assert "breaks down over it" in refusal(tmp_path / "m.h5")


def test_the_process_has_limits_and_takes_nothing_from_the_folder_it_runs_in(tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("raise SystemExit(3)")
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    one(tmp_path / "m.h5", x=KERNEL)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(read("m.h5").tensors["a/x"], torch.as_tensor(KERNEL))
    listing = hdf5listing.__file__
    program = f"import runpy, resource; runpy.run_path({listing!r})['_limit'](); print('{{\"damaged\": \"' + str("
    program += "resource.getrlimit(resource.RLIMIT_AS)[0]) + '\"}')"
    (tmp_path / "limits.py").write_text(program)
    monkeypatch.setattr(hdf5listing, "__file__", str(tmp_path / "limits.py"))
    with pytest.raises(CheckpointError, match=str(hdf5listing.MOST_BYTES)):
        read("m.h5")


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    one(tmp_path / "m.h5", x=KERNEL)
    monkeypatch.setattr(hdf5files, "find_spec", lambda name: None)
    assert "pip install 'btcompress[keras]'" in refusal(tmp_path / "m.h5")


def test_a_folder_with_the_same_model_for_torch_is_that(tmp_path, here):
    one(tmp_path / "tf_model.h5", x=KERNEL)
    assert sorted(read(tmp_path).tensors) == ["a/x"]
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert sorted(read(tmp_path).tensors) == ["w"]
