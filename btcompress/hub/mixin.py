"""``huggingface_hub``'s mixin for networks with block-term layers."""

from __future__ import annotations

import inspect
from dataclasses import asdict, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from btcompress.applied import remember
from btcompress.errors import BTCompressError
from btcompress.hub import config as configs
from btcompress.hub import weights
from btcompress.hub.card import BEGIN, section, with_section
from btcompress.hub.folder import written_into
from btcompress.models import restore

_CARD_NAME = "README.md"

#: What is told of the compression, on its way into the card.
_SECTION_NAME = ".btcompress-section"

#: The text of a new card; its classes' own templates, links and tags are taken where they have some.
_CARD = """
---
{{ card_data }}
---

# Model card
{% for name, url in (("Code", repo_url), ("Paper", paper_url), ("Docs", docs_url)) if url %}
- {{ name }}: {{ url }}
{%- endfor %}
"""


class HubMixin(PyTorchModelHubMixin, library_name="btcompress", tags=["btcompress"], model_card_template=_CARD):
    """``huggingface_hub.PyTorchModelHubMixin`` for networks with block-term layers: same methods and arguments.

    Write ``class Tagger(nn.Module, HubMixin)``. The class builds its layers dense or as block-term layers; whatever it
    has when it is saved, put there by :func:`btcompress.apply` or by the class, it has again once it is loaded.

    ``save_pretrained`` writes ``model.safetensors``, ``config.json`` and the card ``README.md``. Where a result was
    applied to the network, its weights are a result, as small as that was, and the card has the table of its report. Of
    a card that is there already only that section is written anew.

    ``from_pretrained`` builds the class from the arguments in ``config.json``, and fills it, in evaluation mode. It
    reads the files as all others are read here: nothing in them is executed, and sizes are compared with the tensors
    before memory is taken.
    """

    @property
    def _network(self) -> nn.Module:
        """What is saved."""
        if not isinstance(self, nn.Module):
            raise BTCompressError(f"{type(self).__name__} is no nn.Module. Inherit from both, nn.Module first.")
        return self

    @classmethod
    def _build(cls, saved: weights.Saved, arguments: dict[str, Any]) -> nn.Module:  # noqa: ARG003 - for classes below
        """The network as its class makes it."""
        module: object = built(cls, arguments)
        if not isinstance(module, nn.Module):
            raise BTCompressError(f"{cls.__name__} is no nn.Module. Inherit from both, nn.Module first.")
        return module

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        config: Any = None,  # noqa: ANN401 - a dict or any dataclass
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,  # noqa: ANN401
    ) -> str | None:
        """Write weights, arguments and card to a folder; each file whole or not at all, and what else is there stays.

        Args:
            save_directory: the folder; made where it is missing.
            config: in the place of the class's arguments, a dictionary or a dataclass.
            repo_id: where to upload to; the folder's name when left out.
            push_to_hub: upload it as well.
            model_card_kwargs: for the template of the card.
            **push_to_hub_kwargs: for ``push_to_hub``.

        Returns:
            The address of the commit where it was uploaded.

        Raises:
            OutputError: a file cannot be written there, or another process is writing it.
            CheckpointError: the network holds what a ``.safetensors`` file cannot.
        """
        folder = Path(save_directory)
        arguments = self._hub_mixin_config if config is None else config
        plain = asdict(arguments) if is_dataclass(arguments) else dict(arguments or {})  # type: ignore[arg-type]
        shapes = configs.section_of(weights.shapes_of(self._network))
        with written_into(folder, weights.NAME) as stage:
            super().save_pretrained(
                stage, config={**plain, configs.SECTION: shapes}, model_card_kwargs=model_card_kwargs
            )
            _merge_card(folder / _CARD_NAME, stage)
        if not push_to_hub:
            return None
        options = {"config": config, "model_card_kwargs": model_card_kwargs, **push_to_hub_kwargs}
        return self.push_to_hub(repo_id or folder.resolve().name, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        network = weights.Network.of(self._network)
        path = save_directory / weights.NAME
        network.write(path)
        (save_directory / _SECTION_NAME).write_text(section(network, path), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """The network that was saved, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a repository on the Hub, of which the two files are
                fetched.
            force_download: as ``huggingface_hub``'s, likewise the next four.
            token: for the Hub.
            cache_dir: where files of the Hub are kept.
            local_files_only: take what is kept there.
            revision: of the repository.
            **model_kwargs: arguments of the class, in the place of those in ``config.json``; ``map_location``, the
                device; and ``strict``, as that of :func:`btcompress.apply`.

        Raises:
            CheckpointError: a file is missing or damaged, or the files do not fit one another, or the class.
            BTCompressError: there is no such folder, or the class takes other arguments.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                fetched = snapshot_download(
                    str(pretrained_model_name_or_path),
                    allow_patterns=[configs.NAME, weights.NAME],
                    force_download=force_download,
                    token=token,
                    cache_dir=None if cache_dir is None else str(cache_dir),
                    local_files_only=local_files_only,
                    revision=revision,
                )
            except HFValidationError as error:
                raise BTCompressError(
                    f"{folder} is no folder, and no name of a repository on the Hub. Give the folder that "
                    "save_pretrained has written."
                ) from error
            folder = Path(fetched)
        if (folder / configs.NAME).exists():
            configs.read_config(folder / configs.NAME)  # before anything else reads it
        return super().from_pretrained(folder, **model_kwargs)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,  # noqa: ARG003 - all is in the folder
        cache_dir: str | Path | None,  # noqa: ARG003
        force_download: bool,  # noqa: ARG003
        local_files_only: bool,  # noqa: ARG003
        token: str | bool | None,  # noqa: ARG003
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **model_kwargs: Any,  # noqa: ANN401
    ) -> nn.Module:
        saved = weights.read(Path(model_id))
        # A class that takes any arguments, or its whole config, gets no section that it does not know.
        model_kwargs.pop(configs.SECTION, None)
        if isinstance(whole := model_kwargs.get("config"), dict):
            model_kwargs["config"] = {name: value for name, value in whole.items() if name != configs.SECTION}
        module = restore(cls._build(saved, model_kwargs), saved.shapes, saved.tensors, strict=strict)
        if saved.result is not None:
            remember(module, saved.result)
        return module.to(map_location).eval()


def built(build: type, arguments: dict[str, Any]) -> object:
    """What a class makes of arguments.

    Raises:
        BTCompressError: it does not take these.
    """
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise BTCompressError(
            f"{build.__name__} cannot be built of the arguments in {configs.NAME} and those given "
            f"({', '.join(arguments) or 'none'}): {error}. Give from_pretrained what the class takes."
        ) from error
    return build(**arguments)


def _merge_card(card: Path, stage: Path) -> None:
    """Put the section into the card: the new one, or the one that is there, if that has the place for it."""
    own, new = stage / _SECTION_NAME, stage / _CARD_NAME
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    if text is not None and BEGIN not in text:
        new.unlink()
    else:
        new.write_text(
            with_section(text or new.read_text(encoding="utf-8"), own.read_text(encoding="utf-8")), encoding="utf-8"
        )
    own.unlink()
