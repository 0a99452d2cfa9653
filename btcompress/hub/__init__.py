"""The Hugging Face Hub's habits: networks with block-term layers saved to a folder, and read from it."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.hub.mixin import HubMixin
    from btcompress.hub.modules import from_pretrained, push_to_hub, save_pretrained

__all__ = ["HubMixin", "from_pretrained", "push_to_hub", "save_pretrained"]

_load = on_first_use(
    __name__,
    {"HubMixin": "mixin", "from_pretrained": "modules", "push_to_hub": "modules", "save_pretrained": "modules"},
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
