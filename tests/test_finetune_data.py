import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from btcompress.errors import BTCompressError
from btcompress.finetune import data as room
from btcompress.finetune.data import Batch, open_data, split
from tuning import draw

X = draw(5, 4, 3)
Y = np.array([2, 0, 1, 1, 0])
LENGTHS = np.array([4, 1, 2, 3, 4])
ROWS = torch.tensor([3, 0, 1])


def written(folder, suffix, **arrays):
    path = folder / f"data{suffix}"
    if suffix == ".npy":
        np.save(path, arrays["x"])
    elif suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_every_format_gives_the_rows_asked_for_in_that_order(suffix, tmp_path):
    data = open_data(str(written(tmp_path, suffix, x=X, y=Y, lengths=LENGTHS)))
    batch = data.batch(ROWS)
    assert len(data) == 5
    assert torch.equal(batch.x, torch.from_numpy(X[[3, 0, 1]]))
    if suffix != ".npy":
        assert batch.y.tolist() == [1, 2, 0]
        assert batch.lengths.tolist() == [3, 4, 1]


@pytest.mark.parametrize(("suffix", "order"), [(".npz", "C"), (".npz", "F"), (".npy", "C")])
def test_arrays_that_lie_uncompressed_are_mapped_not_read(suffix, order, tmp_path):
    data = open_data(str(written(tmp_path, suffix, x=np.asarray(X, order=order))))
    assert isinstance(data.x, np.memmap)
    assert np.array_equal(data.x, X)


def test_compressed_npz_holds_the_same_numbers(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=X)
    assert np.array_equal(open_data(str(tmp_path / "data.npz")).x, X)


def test_bytes_are_scaled_as_they_are_read(tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    batch = open_data(str(written(tmp_path, ".npz", x=x)), 1 / 255).batch(torch.tensor([1]))
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x[0], torch.from_numpy(x[1]) / 255)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X[0]}, r"shape \(4, 3\).*\(N, T, I\)"),
        ({"x": X[:0]}, r"shape \(0, 4, 3\)"),
        ({"x": X.astype(complex)}, "complex128"),
        ({"x": X, "y": Y[:4]}, r"y has shape \(4,\) and x has shape \(5, 4, 3\)"),
        ({"x": X, "lengths": LENGTHS + 1}, "from 2 to 5.*from 1 to 4"),
        ({"x": X, "lengths": LENGTHS - 1}, "from 0 to 3"),
        ({"z": X}, "no array x"),
        ({"x": np.array([[["a"]]])}, "<U1"),
    ],
)
def test_arrays_that_are_no_sequences_are_refused_in_words(arrays, words, tmp_path):
    with pytest.raises(BTCompressError, match=words):
        open_data(str(written(tmp_path, ".npz", **arrays)))


def test_inputs_that_are_not_finite_are_named_by_their_sequence(tmp_path):
    x = X.copy()
    x[3, 1, 2] = np.nan
    data = open_data(str(written(tmp_path, ".npz", x=x)))
    with pytest.raises(BTCompressError, match="sequence 3 of x"):
        data.batch(ROWS)
    data.batch(torch.tensor([0, 4]))


def test_pickled_objects_are_never_loaded(tmp_path):
    np.save(tmp_path / "data.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(BTCompressError, match="plain numbers"):
        open_data(str(tmp_path / "data.npy"))
    np.savez(tmp_path / "data.npz", x=np.array([{}]))
    with pytest.raises(BTCompressError, match="plain numbers"):
        open_data(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("name", ["nowhere.npz", "text.csv", "broken.npz", "broken.safetensors", "broken.npy"])
def test_files_that_cannot_be_read_are_refused(name, tmp_path):
    if not name.startswith("nowhere"):
        (tmp_path / name).write_text("hello")
    with pytest.raises(BTCompressError, match=name):
        open_data(str(tmp_path / name))


def test_split_is_made_by_the_seed_and_loses_nothing(tmp_path):
    data = open_data(str(written(tmp_path, ".npz", x=draw(20, 2, 3))))
    train, held = split(data, 0.25, seed=3)
    assert (len(train), len(held)) == (15, 5)
    assert sorted([*train.rows.tolist(), *held.rows.tolist()]) == list(range(20))
    assert torch.equal(split(data, 0.25, seed=3)[1].rows, held.rows)
    assert not torch.equal(split(data, 0.25, seed=4)[1].rows, held.rows)
    assert torch.equal(held.batch(torch.tensor([2])).x, data.batch(held.rows[2:3]).x)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.95, -1.0])
def test_split_that_leaves_a_part_empty_is_refused(fraction, tmp_path):
    data = open_data(str(written(tmp_path, ".npz", x=X)))
    with pytest.raises(BTCompressError, match="--val-fraction"):
        split(data, fraction, seed=0)


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index

    def __iter__(self):
        return iter(range(3))


def pairs():
    return TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


def loader():
    return DataLoader(pairs(), batch_size=2, shuffle=True, collate_fn=lambda items: {"x": torch.stack([items[0][0]])})


FACTORIES = {"pairs": pairs, "loader": loader, "stream": Stream, "nothing": lambda: None, "empty": list}


@pytest.fixture
def factory(monkeypatch):
    def opened(name):
        monkeypatch.setattr(room, "resolve", lambda option, text, folder: FACTORIES[name])
        return open_data(f"made.up:{name}")

    return opened


def test_datasets_and_the_collation_of_loaders_are_used(factory):
    batch = factory("pairs").batch(ROWS)
    assert torch.equal(batch.x, torch.from_numpy(X[[3, 0, 1]]))
    assert batch.y.tolist() == [1, 2, 0]
    assert torch.equal(factory("loader").batch(ROWS).x, torch.from_numpy(X[3:4]))


@pytest.mark.parametrize("name", ["stream", "nothing", "empty"])
def test_factories_that_give_no_dataset_are_refused(name, factory):
    with pytest.raises(BTCompressError, match="must give a Dataset"):
        factory(name)


def test_numbers_beyond_the_range_of_what_computes_are_refused_not_made_infinite():
    batch = Batch(torch.tensor([[[1.0, -1e300]]], dtype=torch.float64))
    with pytest.raises(BTCompressError, match=r"1e\+300, which is beyond the range of float32"):
        batch.to(torch.device("cpu"), torch.float32)
    assert batch.to(torch.device("cpu"), torch.float64).x.equal(batch.x)
