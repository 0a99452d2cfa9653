"""Orders of hidden units: none, of each matrix by itself, one for each layer, and what ``--order-units`` keeps.

    python tests/benchmarks/shared_orders.py CHECKPOINT [--cp-rank N] [--tucker-rank R] [--order D] [--container NAME]

Prints, for the factorized matrices of all LSTMs of a checkpoint, the parameters of their forms with each order counted
once, the root of the mean squared weight error, and the share of the squared norm that a thousand parameters explain.
"""

import argparse
from unittest import mock

import torch

import btcompress
from btcompress.blockterm import params_of
from btcompress.orders import unitorders


def measured(path, arguments, *, order_units=True):
    compressed = btcompress.factorize(path, order_units=order_units, **arguments)
    errors = torch.tensor([matrix.weight_error for matrix in compressed.matrices.values()], dtype=torch.float64)
    n_params = params_of([part for key in compressed.matrices for part in compressed.parts(key)])
    explained = float((1 - errors.square()).sum())
    mean = float(errors.square().mean().sqrt())
    return f"{n_params:,} ({compressed.n_params:,} of the model), {mean:.4f}, {1000 * explained / n_params:.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--cp-rank", type=int, default=2)
    parser.add_argument("--tucker-rank", type=int, default=4)
    parser.add_argument("--order", type=int)
    parser.add_argument("--container")
    given = parser.parse_args()
    path = given.checkpoint
    arguments = {name: value for name, value in vars(given).items() if name != "checkpoint"}
    arguments["matrices"] = ("input", "recurrent")
    print(
        "parameters of the matrices (of the model), root mean square of weight errors, explained per 1,000 parameters"
    )
    print("as they are:", measured(path, arguments, order_units=False))
    with mock.patch.object(unitorders, "_sets", return_value=[]):
        print("each its own:", measured(path, arguments))
    whole = mock.patch.object(unitorders, "_sets", lambda sides: [sides])
    # One order for each layer, whatever it is worth.
    worth = mock.patch.object(unitorders, "_explained_per_parameter", lambda fits, _: float(len(shared(fits))))
    with whole, worth:
        print("one for each layer:", measured(path, arguments))
    print("kept:", measured(path, arguments))


def shared(fits):
    """Orders that more than one side has."""
    orders = [order.data_ptr() for fit in fits.values() for part in fit.parts for order in part.orders]
    return {order for order in orders if orders.count(order) > 1}


if __name__ == "__main__":
    main()
