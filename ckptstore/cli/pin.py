"""``ckptstore pin`` and ``ckptstore unpin``: keep a checkpoint from being deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore.cli.exit_codes import OK
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path
from ckptstore.cli.shell_command import Options, shell_command
from ckptstore.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ckptstore.storage.base import Location

__all__ = ["pin_command", "unpin_command"]

_RECORD = click.option(
    "--record", "record_name", metavar="NAME", help="The record that lists it, if it is not 'checkpoint'."
)


@shell_command("pin")
@click.argument("prefix", metavar="PREFIX", shell_complete=complete_path)
@_RECORD
def pin_command(output: Output, storage_options: Options, *, prefix: str, record_name: str | None) -> int:
    """Keep the checkpoint PREFIX: no save, prune or gc deletes it until it is unpinned.

    It takes no place among those that a running job keeps. The job need not be stopped; its next save knows.

    Exit code 3 if there is no such checkpoint, or if it is being deleted.
    """
    from ckptstore.cli.targets import at_checkpoint
    from ckptstore.directory.latest import record_location
    from ckptstore.directory.pins import add_pin, is_there
    from ckptstore.storage.registry import locate

    def existing(place: Location) -> Location:
        if not is_there(place):
            raise NotFoundError("there is no such checkpoint", url=place.url)
        return place

    place = at_checkpoint(locate(prefix, storage_options), existing, output)
    if place is None:
        raise _directory_instead(prefix)
    is_new = add_pin(place, record_location(place.parent, record_name))
    output.pin(place.url, is_pinned=True, is_changed=is_new)
    return OK


@shell_command("unpin")
@click.argument("prefix", metavar="PREFIX", shell_complete=complete_path)
@_RECORD
def unpin_command(output: Output, storage_options: Options, *, prefix: str, record_name: str | None) -> int:
    """Take the pin of the checkpoint PREFIX away: retention counts it again.

    Exit code 3 if nothing of this name is pinned and there is no such checkpoint.
    """
    from ckptstore.cli.targets import at_checkpoint
    from ckptstore.directory.latest import record_location
    from ckptstore.directory.pins import remove_pin
    from ckptstore.storage.registry import locate

    def remove(place: Location) -> tuple[Location, bool]:
        return place, remove_pin(place, record_location(place.parent, record_name))

    done = at_checkpoint(locate(prefix, storage_options), remove, output)
    if done is None:
        raise _directory_instead(prefix)
    place, was_pinned = done
    output.pin(place.url, is_pinned=False, is_changed=was_pinned)
    return OK


def _directory_instead(url: str) -> UsageError:
    return UsageError(
        "this is a directory, not a checkpoint", url=url, hint="ckptstore ls shows the checkpoints in it."
    )
