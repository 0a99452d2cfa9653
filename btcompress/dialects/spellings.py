"""How hand-written recurrent layers call the matrices of their gates: the table of spellings, and what it knows.

Names are compared without regard to case. Gates are called by torch's letters here, but an LSTM's ``g`` may be ``c``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

#: What a tensor is: a matrix for inputs, one for the state, or a bias on the side of either.
Role = Literal["weight_ih", "weight_hh", "bias_ih", "bias_hh"]

#: The letters of gates that are written out; ``c``, ``h`` and ``u`` are others' for ``g``, ``n`` and ``z``.
LETTERS = ("i", "f", "g", "o", "c", "r", "z", "n", "h", "u")


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to name the matrices of gates; ``{}`` stands for the gate's letter.

    Attributes:
        inputs: of the matrices that inputs meet, or of either where shapes have to tell.
        recurrent: of the others.
        biases: of biases on the side of inputs; one alone on neither side counts as this.
        recurrent_biases: of biases on the side of the state.
        is_told: the names tell which matrices inputs meet.
    """

    inputs: str
    recurrent: str
    biases: tuple[str, ...]
    recurrent_biases: tuple[str, ...] = ()
    is_told: bool = True


#: As found in many projects; the symbols of torch's own documentation first.
SPELLINGS = (
    Spelling("w_i{}", "w_h{}", ("b_i{}", "b_{}"), ("b_h{}",)),
    Spelling("wi{}", "wh{}", ("bi{}", "b{}"), ("bh{}",)),
    Spelling("weight_i{}", "weight_h{}", ("bias_i{}", "bias_{}"), ("bias_h{}",)),
    Spelling("w_x{}", "w_h{}", ("b_x{}", "b_{}", "bias_{}"), ("b_h{}",)),
    Spelling("wx{}", "wh{}", ("bx{}", "b{}", "b_{}"), ("bh{}",)),
    Spelling("weight_x{}", "weight_h{}", ("bias_x{}", "bias_{}"), ("bias_h{}",)),
    Spelling("w_{}x", "w_{}h", ("b_{}x", "b_{}", "bias_{}", "w_{}b"), ("b_{}h",)),
    Spelling("w{}x", "w{}h", ("b{}x", "b{}", "b_{}"), ("b{}h",)),
    Spelling("w_{}i", "w_{}h", ("b_{}i", "b_{}", "bias_{}"), ("b_{}h",)),
    Spelling("weight_{}i", "weight_{}h", ("bias_{}i", "bias_{}"), ("bias_{}h",)),
    Spelling("linear_{}x", "linear_{}h", ("b_{}", "bias_{}")),
    Spelling("i2h_{}", "h2h_{}", ("b_{}", "bias_{}")),
    Spelling("x2h_{}", "h2h_{}", ("b_{}", "bias_{}")),
    Spelling("i{}_gate", "h{}_gate", ("b_{}", "bias_{}")),
    Spelling("i{}", "h{}", ("b_{}", "bias_{}")),
    Spelling("w_{}", "u_{}", ("b_{}", "bias_{}"), is_told=False),
    Spelling("w{}", "u{}", ("b{}", "b_{}"), is_told=False),
    Spelling("u_{}", "v_{}", ("b_{}", "bias_{}"), is_told=False),
)


def _meanings() -> dict[str, tuple[tuple[Spelling, Role, str], ...]]:
    known: dict[str, list[tuple[Spelling, Role, str]]] = defaultdict(list)
    for spelling in SPELLINGS:
        forms: list[tuple[str, Role]] = [(spelling.inputs, "weight_ih"), (spelling.recurrent, "weight_hh")]
        forms += [(form, "bias_ih") for form in spelling.biases]
        forms += [(form, "bias_hh") for form in spelling.recurrent_biases]
        for form, role in forms:
            for letter in LETTERS:
                known[form.format(letter)].append((spelling, role, letter))
    return {name: tuple(meanings) for name, meanings in known.items()}


#: By name, in small letters, what it may stand for.
MEANINGS = _meanings()

#: Words for gates of layers whose matrices take inputs and state side by side.
WORDS = {
    "i": ("input_gate", "i_gate", "in_gate", "linear_i", "gate_i", "w_i", "wi", "fc_i"),
    "f": ("forget_gate", "f_gate", "linear_f", "gate_f", "w_f", "wf", "fc_f"),
    "o": ("output_gate", "o_gate", "out_gate", "linear_o", "gate_o", "w_o", "wo", "fc_o"),
    "g": (
        *("cell_gate", "g_gate", "c_gate", "candidate_gate", "update_gate", "candidate", "cell_candidate"),
        *("candidate_cell", "cell_update", "candidate_cell_state", "cell_state_update", "cell_state", "cell"),
        *("linear_g", "linear_c", "gate_g", "gate_c", "w_g", "w_c", "wg", "wc", "fc_g", "fc_c"),
    ),
    "r": ("reset_gate", "r_gate", "linear_r", "gate_r", "w_r", "wr", "fc_r"),
    "z": ("update_gate", "z_gate", "u_gate", "linear_z", "gate_z", "w_z", "w_u", "wz", "wu", "fc_z"),
    "n": (
        *("new_gate", "n_gate", "h_gate", "candidate_gate", "candidate", "hidden_gate", "new_memory"),
        *("linear_n", "linear_h", "gate_n", "gate_h", "w_n", "w_h", "w", "wn", "wh", "fc_n", "fc_h"),
    ),
}
