"""What the demo shows: with rich where that is installed, as plain text elsewhere."""

from __future__ import annotations

import importlib.util
import shutil
import textwrap
from collections.abc import Sequence

_MAX_WIDTH = 100
_BARS = "▁▂▃▄▅▆▇█"


def open_screen() -> Screen:
    """Return the best screen that this environment has."""
    return RichScreen() if importlib.util.find_spec("rich") else Screen()


def bars(values: Sequence[float], low: float, high: float) -> str:
    """Return `values` as a line of bars."""
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


class Screen:
    """Plain text."""

    def __init__(self) -> None:
        self.width = min(shutil.get_terminal_size((_MAX_WIDTH, 40)).columns, _MAX_WIDTH)
        self._steps = 0

    def title(self, title: str, text: str) -> None:
        """Begin."""
        print(f"{title}\n{'=' * len(title)}")
        self.say(text)

    def step(self, title: str, text: str) -> None:
        """Begin the next step."""
        self._steps += 1
        print(f"\n-- {self._steps}. {title} {'-' * (self.width - len(title) - 7)}")
        self.say(text)

    def say(self, text: str) -> None:
        """Show a paragraph; its line breaks stay."""
        print("\n".join(textwrap.fill(line, self.width) for line in text.splitlines()))

    def command(self, command: str, output: str, exit_code: int | None) -> None:
        """Show a command and what it said."""
        print(f"\n  $ {command}")
        for line in output.splitlines():
            print(textwrap.fill(line, self.width, initial_indent="  ", subsequent_indent="      "))
        if exit_code is not None:
            print(f"  (exit code {exit_code})")
        print()

    def session(self, lines: Sequence[tuple[str, str]]) -> None:
        """Show lines of Python and what they print."""
        print()
        for code, output in lines:
            print(f"  >>> {code}")
            for line in output.splitlines():
                print(f"  {line}")
        print()

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show numbers; the columns are as wide as their titles."""
        for row in [titles, *rows]:
            print("  " + "  ".join(cell.rjust(len(title)) for cell, title in zip(row, titles, strict=True)))
        print()

    def claim(self, text: str, holds: bool) -> None:
        """Show a statement that was checked."""
        print(f"  {'ok    ' if holds else 'FAILED'}  {text}")

    def end(self, text: str, good: bool = True) -> None:
        """Show the last paragraph."""
        print()
        self.say(text)


class RichScreen(Screen):
    """Colours, rules and panels."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(width=self.width, highlight=False, emoji=False, markup=False)

    def title(self, title: str, text: str) -> None:
        from rich.panel import Panel

        self._console.print(Panel(text, title=title, title_align="left", border_style="cyan", padding=(1, 2)))

    def step(self, title: str, text: str) -> None:
        from rich.rule import Rule

        self._steps += 1
        self._console.print()
        self._console.print(Rule(f"{self._steps}. {title}", align="left", style="cyan"), style="bold")
        self.say(text)

    def say(self, text: str) -> None:
        self._console.print(text)

    def command(self, command: str, output: str, exit_code: int | None) -> None:
        from rich.padding import Padding
        from rich.text import Text

        shown = Text()
        shown.append(f"$ {command}", "bold cyan")
        shown.append(f"\n{output.rstrip()}" if output.strip() else "")
        if exit_code is not None:
            shown.append(f"\n(exit code {exit_code})", "dim" if exit_code == 0 else "yellow")
        self._console.print(Padding(shown, (1, 0, 1, 2)))

    def session(self, lines: Sequence[tuple[str, str]]) -> None:
        from rich.padding import Padding
        from rich.text import Text

        shown = Text()
        for code, output in lines:
            shown.append(f">>> {code}\n", "bold cyan")
            shown.append(f"{output}\n" if output else "")
        self._console.print(Padding(shown, (1, 0, 0, 2)))

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.padding import Padding
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for title in titles:
            table.add_column(title, justify="right")
        for row in rows:
            table.add_row(*row)
        self._console.print(Padding(table, (0, 0, 1, 2)))

    def claim(self, text: str, holds: bool) -> None:
        from rich.text import Text

        mark = Text("  ✓ " if holds else "  ✗ FAILED: ", "green" if holds else "bold red")
        self._console.print(mark + Text(text, "" if holds else "bold red"))

    def end(self, text: str, good: bool = True) -> None:
        from rich.panel import Panel

        self._console.print()
        self._console.print(Panel(text, border_style="green" if good else "red", padding=(1, 2)))
