"""What block-term modules have of the Hugging Face Hub's habits; the work is done where files are known."""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

from btcompress.lazy import elsewhere


class Pretrained:
    """Saved to a folder and read from it as models of ``huggingface_hub`` are.

    These modules do not inherit ``huggingface_hub.PyTorchModelHubMixin``, as importing that takes longer than most
    of what they do; :func:`btcompress.hub.save_pretrained` and its like call it for them.
    """

    def save_pretrained(self, save_directory: str | PathLike[str], **options: Any) -> str | None:  # noqa: ANN401
        """Write weights, arguments and model card; see :func:`btcompress.hub.save_pretrained`."""
        return elsewhere("btcompress.hub", "save_pretrained")(self, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # noqa: ANN401
        """Upload the same; see :func:`btcompress.hub.push_to_hub`."""
        return elsewhere("btcompress.hub", "push_to_hub")(self, repo_id, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: Any) -> Self:  # noqa: ANN401
        """The module that was saved; see :func:`btcompress.hub.from_pretrained`."""
        return elsewhere("btcompress.hub", "from_pretrained")(cls, pretrained_model_name_or_path, **options)
