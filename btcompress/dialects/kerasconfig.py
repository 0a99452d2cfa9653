"""What the configuration of a Keras model says of its layers: classes, and what these apply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Layers around another, by the entry of their configuration that has it.
_AROUND = {"Bidirectional": "layer", "TimeDistributed": "layer", "RNN": "cell"}
_MODELS = ("Sequential", "Functional", "Model")


@dataclass(frozen=True, slots=True)
class Told:
    """What a configuration says of one layer.

    Attributes:
        class_name: of the layer, or of the one within it where it goes around another.
        config: of that layer.
        around: of the layers around it, by their class.
    """

    class_name: str
    config: Mapping[str, Any]
    around: Mapping[str, Mapping[str, Any]]

    def applied(self, name: str, usual: str) -> str:
        """The function of a name, such as ``recurrent_activation``; the usual one where nothing is said."""
        return _function(self.config.get(name, usual))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the configuration of a model says.

    Attributes:
        layers: by name what is said of a layer; in models within models a name may stand for several.
        numbers: by the path that weights in a Keras 3 file lie at, ``layers/lstm_1``, the name of the layer.
    """

    layers: Mapping[str, tuple[Told, ...]]
    numbers: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> ModelConfig:
        """From the JSON of ``model.to_json()`` or ``config.json``; what is none says nothing."""
        try:
            root = json.loads(text)
        except (ValueError, RecursionError):
            root = None
        layers: dict[str, tuple[Told, ...]] = {}
        for name, told in _layers(root):
            layers[name] = (*layers.get(name, ()), told)
        return cls(layers, dict(_numbers(root, "")))


def _layers(root: object) -> Iterator[tuple[str, Told]]:
    """Every layer by its name, however deep in models and other layers it is."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            config = value.get("config")
            if isinstance(config, dict) and isinstance(config.get("name"), str):
                yield config["name"], _told(value)


def _told(value: Mapping[str, Any]) -> Told:
    around: dict[str, Mapping[str, Any]] = {}
    while True:
        class_name, config = str(value.get("class_name")), value.get("config")
        config = config if isinstance(config, dict) else {}
        within = config.get(_AROUND.get(class_name, ""))
        if class_name in around or not isinstance(within, dict):
            return Told(class_name, config, around)
        around[class_name] = config
        value = within


def _numbers(value: object, prefix: str) -> Iterator[tuple[str, str]]:
    """Where Keras 3 puts the layers of a model, which it numbers by their classes in the order of the model."""
    config = value.get("config") if isinstance(value, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else None
    counts: dict[str, int] = {}
    for layer in layers if isinstance(layers, list) and prefix.count("/") < 32 else ():
        own = layer.get("config") if isinstance(layer, dict) else None
        if not isinstance(own, dict):
            continue
        kind = _snake_case(str(layer.get("class_name")))
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        path = f"{prefix}layers/{kind}_{number}" if number else f"{prefix}layers/{kind}"
        if isinstance(own.get("name"), str):
            yield path, own["name"]
        if layer.get("class_name") in _MODELS:
            yield from _numbers(layer, f"{path}/")


def _snake_case(name: str) -> str:
    """As Keras turns the names of classes into those of groups: ``SimpleRNN`` into ``simple_rnn``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _function(value: object) -> str:
    """The name of a function, which later versions put into a description of an object."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        value = inner if isinstance(inner, str) else value.get("class_name")
    return "linear" if value is None else str(value)
