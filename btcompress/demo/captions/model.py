"""The captioner: one LSTM reads the feature map of a picture in one step, another goes on from there and writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from btcompress.demo.captions.grammar import BEGIN, END, STEPS, VOCABULARY

#: In the place of a word that is not to be learned.
IGNORED = -100


class Captioner(nn.Module):
    """Feature map to sentence, as in Vinyals et al. (2015), where one LSTM reads a picture and then words.

    Its matrix for inputs, ``W`` of features and words, is held by two layers here: ``reader`` takes the features, in
    one step from zeros, and ``writer`` the words, from the reader's states on. What the reader gave stands beside each
    word too, and what the writer lets through of it (a gate on each of its numbers, as attention in Xu et al. 2015)
    beside what it gives: so it can look up the object that it speaks of.

    Args:
        map_shape: rows, columns and channels of the feature map.
        embedding_size: of a word.
        hidden_size: of the writer.
        dropout: share of what the writer takes and gives that is left out in training.
        reader_size: hidden size of the reader; where it is not the writer's, a linear layer leads to it.
    """

    def __init__(
        self,
        map_shape: tuple[int, int, int],
        embedding_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        reader_size: int | None = None,
    ) -> None:
        super().__init__()
        self.map_shape = map_shape
        rows, columns, channels = map_shape
        self.n_features = rows * columns * channels
        width = reader_size or hidden_size
        self.reader = nn.LSTM(self.n_features, width, batch_first=True)
        self.bridge = nn.Identity() if width == hidden_size else nn.Linear(width, hidden_size)
        self.embedding = nn.Embedding(len(VOCABULARY), embedding_size)
        self.writer = nn.LSTM(embedding_size + hidden_size, hidden_size, batch_first=True)
        self.gate = nn.Linear(hidden_size, hidden_size)
        self.head = nn.Linear(2 * hidden_size, len(VOCABULARY))
        self.dropout = nn.Dropout(dropout)
        # Inputs have norm 1, so that W x spreads as far as the entries of W do.
        nn.init.normal_(self.reader.get_parameter("weight_ih_l0"), std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of every word at each step, given the words before it; shape ``(B, sentences * STEPS, words)``.

        Args:
            x: features, as bytes or not, and the tokens of one or several sentences after them:
                ``(B, 1, n_features + sentences * STEPS)``.
        """
        features, rest = x.flatten(1).tensor_split([self.n_features], dim=1)
        tokens = rest.unflatten(1, (-1, STEPS))  # (B, sentences, STEPS)
        before = torch.cat([torch.full_like(tokens[..., :1], BEGIN), tokens[..., :-1]], dim=-1)
        hidden, cell = (each.repeat_interleave(tokens.shape[1], dim=1) for each in self._read(features))
        scores, _ = self._written(before.flatten(0, 1).long(), hidden, (hidden, cell))
        return scores.view(len(x), -1, scores.shape[-1])

    @torch.no_grad()
    def captions(self, features: Tensor) -> Tensor:
        """The most likely word at each step, shape ``(B, STEPS)``, of feature maps ``(B, n_features)``."""
        state = self._read(features)
        seen = state[0]
        tokens = torch.full((len(features), STEPS), END)
        word, over = torch.full((len(features), 1), BEGIN), torch.zeros(len(features), dtype=torch.bool)
        for step in range(STEPS):
            scores, state = self._written(word, seen, state)
            word = scores.argmax(-1)  # (B, 1)
            over |= word[:, 0] == END
            if bool(over.all()):
                break
            tokens[:, step] = torch.where(over, END, word[:, 0])
        return tokens

    def _read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The writer's states after a feature map."""
        _, (hidden, cell) = self.reader(self._levelled(features)[:, None])
        return self.bridge(hidden), self.bridge(cell)

    def _levelled(self, features: Tensor) -> Tensor:
        """Each channel without its mean over the picture, and all of a picture brought to norm 1."""
        channels = features.unflatten(1, (-1, self.map_shape[-1]))
        centred = (channels - channels.mean(1, keepdim=True)).flatten(1)
        return nn.functional.normalize(centred)

    def _written(
        self, words: Tensor, seen: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Scores after each word, and the states after the last."""
        beside = seen.transpose(0, 1)  # (B, 1, H)
        inputs = torch.cat([self.embedding(words), beside.expand(-1, words.shape[1], -1)], dim=-1)
        hidden, state = self.writer(self.dropout(inputs), state)
        looked_at = torch.sigmoid(self.gate(hidden)) * beside  # (B, steps, H)
        scores: Tensor = self.head(self.dropout(torch.cat([hidden, looked_at], dim=-1)))
        return scores, state


def word_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of the words wanted, natural logarithms; :data:`IGNORED` are none.

    Args:
        outputs: scores, shape ``(B, sentences * STEPS, words)``.
        y: positions in the vocabulary, shape ``(B, sentences * STEPS)``.
    """
    return cross_entropy(outputs.flatten(0, 1), y.flatten(), ignore_index=IGNORED)
