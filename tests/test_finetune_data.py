import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from btcompress.errors import BTCompressError
from btcompress.finetune import data as room
from btcompress.finetune.data import Batch, open_data, recorded_layers, split
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


# Sequences one after another


STEPS = draw(10, 3)
RAGGED = {"x": STEPS, "lengths": np.array([4, 1, 2, 3])}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_sequences_one_after_another_are_padded_to_the_longest_of_a_batch(suffix, tmp_path):
    data = open_data(str(written(tmp_path, suffix, **RAGGED, y=Y[:4])), 2.0)
    batch = data.batch(torch.tensor([3, 1]))
    assert len(data) == 4
    assert batch.lengths.tolist() == [3, 1]
    assert batch.y.tolist() == [1, 0]
    expected = np.zeros((2, 3, 3), np.float32)
    expected[0], expected[1, 0] = 2 * STEPS[7:], 2 * STEPS[4]
    assert torch.equal(batch.x, torch.from_numpy(expected))
    assert data.batch(torch.tensor([0])).x.shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"lengths": np.array([4, 1, 2])}, "lengths adds up to 7, but x has 10 steps"),
        ({"lengths": np.array([4, 1, 2, 2, 2])}, "adds up to 11"),
        ({"lengths": np.array([10, 0])}, "from 0 to 10"),
        ({"lengths": np.array([11, -1])}, "from -1 to 11"),
        ({"lengths": np.array([2**63 + 5, 2**63 + 5], np.uint64)}, "from 1 to 10"),
        ({"lengths": np.zeros(0, int)}, "at least one sequence"),
        ({"lengths": np.array(10)}, r"shape \(\)"),
        ({"lengths": np.array([[4, 6]])}, "one whole number"),
        ({"lengths": np.array([4.0, 6.0])}, "dtype float64"),
        ({"x": STEPS[:, :0]}, r"shape \(10, 0\)"),
        ({"y": Y}, r"y has shape \(5,\)"),
        ({"y": np.zeros((4, 3), int)}, "labels are for whole sequences"),
        ({"y": np.zeros((4, 3, 2))}, "labels are for whole sequences"),
    ],
)
def test_lengths_and_labels_that_do_not_fit_sequences_one_after_another_are_refused(arrays, words, tmp_path):
    with pytest.raises(BTCompressError, match=rf"data\.npz: .*{words}"):
        open_data(str(written(tmp_path, ".npz", **{**RAGGED, **arrays})))


def test_a_step_that_is_not_finite_is_named_by_its_sequence(tmp_path):
    x = STEPS.copy()
    x[6, 1] = np.inf
    data = open_data(str(written(tmp_path, ".npz", x=x, lengths=RAGGED["lengths"])))
    with pytest.raises(BTCompressError, match="sequence 2 of x"):
        data.batch(torch.tensor([3, 2]))
    data.batch(torch.tensor([0, 1, 3]))


# Initial states


H0, C0 = draw(5, 2, 4, seed=1), draw(5, 2, 6, seed=2)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_initial_states_come_as_an_lstm_takes_them(suffix, tmp_path):
    h, c = open_data(str(written(tmp_path, suffix, x=X, h0=H0, c0=C0)), 2.0).batch(ROWS).state
    assert torch.equal(h, torch.from_numpy(H0[[3, 0, 1]]).transpose(0, 1))
    assert torch.equal(c, torch.from_numpy(C0[[3, 0, 1]]).transpose(0, 1))
    assert open_data(str(written(tmp_path, suffix, x=X))).batch(ROWS).state is None


def test_initial_states_are_moved_and_compared_with_the_range_as_inputs_are():
    batch = Batch(
        torch.zeros(1, 1, 1), state=(torch.ones(1, 1, 1).double(), torch.tensor([[[1e300]]], dtype=torch.float64))
    )
    with pytest.raises(BTCompressError, match="beyond the range"):
        batch.to(torch.device("cpu"), torch.float32)
    assert batch.to(torch.device("cpu"), torch.float64).state[1].item() == 1e300


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"c0": C0}, "c0 is there without h0"),
        ({"h0": H0[:4], "c0": C0}, r"h0 has shape \(4, 2, 4\)"),
        ({"h0": H0, "c0": C0[:, 0]}, r"c0 has shape \(5, 6\).*\(N, directions \* layers, H\)"),
        ({"h0": H0[:, :0], "c0": C0}, r"h0 has shape \(5, 0, 4\)"),
        ({"h0": H0, "c0": C0.astype(complex)}, "complex128"),
        ({"h0": H0.astype("S1"), "c0": C0}, "plain numbers"),
        ({"has_states": np.array(True)}, "seen to start from states that are not zero.*missing: h0, and c0 of an LSTM"),
    ],
)
def test_initial_states_that_are_none_are_refused_in_words(arrays, words, tmp_path):
    with pytest.raises(BTCompressError, match=rf"data\.npz.*{words}"):
        open_data(str(written(tmp_path, ".npz", x=X, **arrays)))


@pytest.mark.parametrize("name", ["h0", "c0"])
def test_initial_states_that_are_not_finite_are_named_by_their_sequence(name, tmp_path):
    states = {"h0": H0.copy(), "c0": C0.copy()}
    states[name][1, 1, 2] = np.nan
    data = open_data(str(written(tmp_path, ".npz", x=X, **states)))
    with pytest.raises(BTCompressError, match=f"sequence 1 of {name}"):
        data.batch(ROWS)
    data.batch(torch.tensor([0, 2]))


# Several layers


LAYERS = {
    "encoder.rnn/x": X,
    "decoder.rnn/x": STEPS,
    "decoder.rnn/lengths": RAGGED["lengths"],
    "decoder.rnn/h0": H0[:4],
    "decoder.rnn/c0": C0[:4],
    "decoder.rnn/has_states": np.array(True),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "asked", ["decoder.rnn", "model.decoder.rnn", "module.decoder.rnn", "net._orig_mod.decoder.rnn"]
)
def test_a_layer_finds_its_arrays_by_name_with_or_without_a_prefix(asked, suffix, tmp_path):
    path = str(written(tmp_path, suffix, **LAYERS))
    assert sorted(recorded_layers(path)) == ["decoder.rnn", "encoder.rnn"]
    data = open_data(path, layer=asked)
    assert (len(data), data.layer) == (4, "decoder.rnn")
    assert data.batch(torch.tensor([0])).state[0].shape == (2, 1, 4)


def test_a_name_that_is_the_end_of_the_recorded_one_finds_it_too(tmp_path):
    data = open_data(str(written(tmp_path, ".npz", **{"model.rnn/x": X, "model.other/x": X[:2]})), layer="rnn")
    assert data.layer == "model.rnn"


def test_an_exact_name_goes_before_the_end_of_a_longer_one(tmp_path):
    path = str(written(tmp_path, ".npz", **{"rnn/x": X, "encoder.rnn/x": X[:2]}))
    assert [len(open_data(path, layer=name)) for name in ("rnn", "encoder.rnn")] == [5, 2]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (None, "encoder.rnn, decoder.rnn, and it is not clear which"),
        ("rnn", "it is not clear which"),
        ("", "it is not clear which"),
        ("head", "none is head"),
        ("coder.rnn", "none is coder.rnn"),
    ],
)
def test_a_layer_without_arrays_of_its_own_is_refused_with_those_that_have(layer, words, tmp_path):
    with pytest.raises(BTCompressError, match=rf"data\.npz holds the inputs of the layers .*{words}.*--layer"):
        open_data(str(written(tmp_path, ".npz", **LAYERS)), layer=layer)


def test_plain_arrays_serve_any_layer_and_the_only_layer_needs_no_name(tmp_path):
    path = str(written(tmp_path, ".npz", x=X))
    assert recorded_layers(path) == ()
    assert open_data(path, layer="anything").layer is None
    only = open_data(str(written(tmp_path, ".npz", **{"encoder.rnn/x": X})))
    assert (len(only), only.layer, split(only, 0.4, 0)[1].layer) == (5, "encoder.rnn", "encoder.rnn")


def test_messages_name_the_array_of_the_layer(tmp_path):
    path = str(written(tmp_path, ".npz", **LAYERS | {"decoder.rnn/lengths": np.array([1])}))
    with pytest.raises(BTCompressError, match=r"data\.npz: decoder\.rnn/lengths adds up to 1"):
        open_data(path, layer="decoder.rnn")
    del (arrays := dict(LAYERS))["decoder.rnn/h0"]
    with pytest.raises(BTCompressError, match=r"decoder\.rnn/c0 is there without h0"):
        open_data(str(written(tmp_path, ".npz", **arrays)), layer="decoder.rnn")
