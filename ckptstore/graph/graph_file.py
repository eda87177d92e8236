"""A ``.meta`` file in memory: its bytes, and the message in them."""

from __future__ import annotations

import functools

from ckptstore.format.metagraph import parse_meta_graph, serialize_meta_graph
from ckptstore.format.protos import Proto
from ckptstore.graph.op_defs import Definitions

__all__ = ["GraphFile"]


class GraphFile:
    """The bytes of a ``.meta`` and its ``MetaGraphDef``, parsed on first use and never changed.

    Parameters
    ----------
    data : bytes
        Binary or text. They are kept, so that exporting the graph gives the same bytes back.
    source : str
        URL for error messages.
    message : MetaGraphDef, optional
        What `data` holds, for callers that parsed it already. It belongs to this object from here on.
    is_text : bool, optional
        Whether `data` is the text form, for callers that know.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self, data: bytes, *, source: str, message: Proto | None = None, is_text: bool | None = None
    ) -> None:
        self.data = data
        self.source = source
        self._message = message
        self._is_text = is_text

    @classmethod
    def of_message(cls, message: Proto, *, source: str) -> GraphFile:
        """Return the binary file of `message`, which belongs to it from here on."""
        return cls(serialize_meta_graph(message), source=source, message=message, is_text=False)

    @property
    def size_bytes(self) -> int:
        """The size of the file: nothing that is read from it may take more memory."""
        return len(self.data)

    @property
    def message(self) -> Proto:
        """The ``MetaGraphDef``; not to be changed.

        Raises
        ------
        FormatError
            If the bytes are not those of a ``.meta``.
        """
        if self._message is None:
            self._message, self._is_text = parse_meta_graph(self.data, source=self.source)
        return self._message

    @property
    def is_text(self) -> bool:
        """Whether `data` is the text form."""
        if self._is_text is None:
            self._message, self._is_text = parse_meta_graph(self.data, source=self.source)
        return self._is_text

    @functools.cached_property
    def definitions(self) -> Definitions:
        """The definitions of the operations in the graph."""
        return Definitions(
            self.message.meta_info_def.stripped_op_list.op, self.message.graph_def.library.function
        )
