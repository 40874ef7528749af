"""Groups of commands: one that loads its commands when they are called, and one that lists when not told what else to do."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from offload.errors import BadDeclaration, BadPayload, OffloadError


class LazyGroup(click.Group):
    """The commands named in `elsewhere` (name to one line of help): each is the attribute of that name in its own module."""

    def __init__(self, *args: Any, elsewhere: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self._elsewhere)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in self._elsewhere:
            return None
        return getattr(import_module(f"offload.cli.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(self._elsewhere.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self._elsewhere:
            ctx.fail(f"there is no command {args[0]!r}{near(args[0], self._elsewhere)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what Offload refuses is told in one line, without a traceback."""
        try:
            return super().invoke(ctx)
        except (BadDeclaration, BadPayload) as error:
            raise Mistaken(str(error)) from error
        except OffloadError as error:
            raise click.ClickException(str(error)) from error


class Mistaken(click.ClickException):
    """What was asked for cannot be, whatever the state of things."""

    exit_code = 2


class ListingGroup(click.Group):
    """A group that lists: `offload jobs --state DEAD` is `offload jobs list --state DEAD`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_help = any(name in args[:1] for name in ctx.help_option_names)
        if not args or (not asks_help and (args[0].startswith("-") or ":" in args[0])):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def near(name: str, known: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """`; did you mean ...?` where something known is like `name`, else nothing."""
    from difflib import get_close_matches

    alike = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(alike)}?" if alike else ""
