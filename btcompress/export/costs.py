"""How long the forms of a layer take in ONNX Runtime, and the one that is expected to be the fastest."""

from __future__ import annotations

from btcompress.errors import BTCompressError
from btcompress.export.forms import Form, possible_forms
from btcompress.export.request import GraphRequest
from btcompress.export.weights import Direction


def choose_form(direction: Direction, request: GraphRequest) -> Form:
    """The form that is expected to run the fastest at the sizes asked for.

    Raises:
        BTCompressError: none that is asked for can write the layer.
    """
    forms = list(possible_forms(direction, request))
    if not forms:
        raise BTCompressError(
            f"the layer of {direction.w.name} cannot be written with ONNX's LSTM operator: it has no projections, and "
            "takes dense matrices, which are not formed where they are very large, or where integers are asked for. "
            "Leave the form to be chosen, or take scan."
        )
    return forms[0]
