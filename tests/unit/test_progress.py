"""What is printed while something runs, with and without a terminal."""

from __future__ import annotations

import ast
import io
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from belvedere.commands import data_summary
from belvedere.commands.options import command_parser
from belvedere.core import log
from belvedere.engine.progress import LINE_INTERVAL_S, Progress, duration, spoken


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A console that remembers what was written."""

    def __init__(self, *, terminal: bool, width: int = 40) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file,
            force_terminal=terminal,
            force_interactive=terminal,
            width=width,
            color_system=None,
        )

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def progress(
    screen: Screen, clock: Clock, *, total: int = 100, show: bool = True, start: int = 0
) -> Progress:
    return Progress(
        total,
        start_step=start,
        images_per_step=8,
        title="tiny/msn",
        show=show,
        console=screen.console,
        clock=clock,
    )


def test_lines_are_whole_and_greppable_on_any_width() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock) as bar:
        clock.now += 2.0
        bar.update(1, {"loss": 3.25, "lr": 1e-3}, waited_s=0.5)
    (line,) = screen.lines
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d tiny/msn step=1/100 eta=0:03:18 images_per_s=4\.0 waiting=25% "
        r"loss=3\.25 lr=0\.001",
        line,
    )


def test_lines_come_first_then_every_ten_seconds_then_last() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock, total=45) as bar:
        for step in range(1, 46):
            clock.now += 1.0
            bar.update(step, {"loss": 1.0} if step % 2 == 0 else {}, waited_s=0.0)
    printed = [int(re.search(r"step=(\d+)/", line).group(1)) for line in screen.lines]  # type: ignore[union-attr]
    assert printed == [2, 12, 22, 32, 42, 45]
    assert LINE_INTERVAL_S == 10.0


def test_the_last_line_is_printed_when_the_run_stops_early_and_only_once() -> None:
    screen, clock = Screen(terminal=False), Clock()

    def interrupted() -> None:
        with progress(screen, clock) as bar:
            for step in (1, 2, 3):
                clock.now += 1.0
                bar.update(step, {"loss": 4.0 - step}, waited_s=0.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    first, last = screen.lines
    assert "step=1/100" in first
    assert "step=3/100" in last
    assert last.endswith("loss=1")


def test_without_numbers_there_is_a_sign_of_life_every_ten_seconds() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock, total=25) as bar:
        for step in range(1, 26):
            clock.now += 1.0
            bar.update(step)
    assert [re.search(r"step=(\d+)", line).group(1) for line in screen.lines] == ["10", "20", "25"]  # type: ignore[union-attr]
    assert "waiting" not in screen.file.getvalue()


def test_not_shown_is_silent() -> None:
    for terminal in (False, True):
        screen, clock = Screen(terminal=terminal), Clock()
        with progress(screen, clock, show=False, total=1) as bar:
            bar.say("hello")
            clock.now += 1.0
            bar.update(1, {"loss": 1.0}, waited_s=0.0)
        assert screen.file.getvalue() == ""


def test_no_update_prints_nothing() -> None:
    screen = Screen(terminal=False)
    with progress(screen, Clock()):
        pass
    assert screen.lines == []


def test_pace_is_that_of_the_last_half_minute_without_the_first_step() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock, total=1000, start=500) as bar:
        assert bar.pace() is None
        clock.now += 60.0  # the first step compiles
        bar.update(501, {}, waited_s=0.0)
        for step in range(502, 512):
            clock.now += 1.0
            bar.update(step, {}, waited_s=0.25)
        pace = bar.pace()
        assert pace is not None
        assert (pace.images_per_s, pace.eta_s, pace.waiting) == pytest.approx((8.0, 489.0, 0.25))
        for step in range(512, 612):  # now twice as fast, and never waiting: the old pace is forgotten
            clock.now += 0.5
            bar.update(step, {}, waited_s=0.0)
        pace = bar.pace()
        assert pace is not None
        assert (pace.images_per_s, pace.eta_s, pace.waiting) == pytest.approx((16.0, 194.5, 0.0))


def test_a_million_short_steps_keep_the_window_small() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock, total=10**6) as bar:
        for step in range(1, 20_001):
            clock.now += 0.01
            bar.update(step, {}, waited_s=0.0)
        assert len(bar._marks) <= 125


def test_a_bar_shows_step_eta_speed_waiting_and_numbers() -> None:
    screen, clock = Screen(terminal=True, width=100), Clock()
    with progress(screen, clock, total=100) as bar:
        for step in range(1, 31):
            clock.now += 1.0
            bar.update(step, {"loss": 3.21987, "entropy": 2.0}, waited_s=0.1)
        bar.say("saved_" + "x" * 150)
    text = screen.file.getvalue()
    assert "saved_" + "x" * 150 in text
    for expected in (
        "tiny/msn",
        "━",
        "30/100",
        "ETA 0:01:10",
        "8.0 images/s",
        "waiting 10%",
        "loss 3.22",
        "entropy 2",
    ):
        assert expected in text
    assert "step=" not in text


@pytest.mark.parametrize("width", [20, 80])
def test_a_narrow_terminal_breaks_nothing(width: int) -> None:
    screen, clock = Screen(terminal=True, width=width), Clock()
    with progress(screen, clock) as bar:
        clock.now += 1.0
        bar.update(7, {f"a long name {i}": float("nan") for i in range(20)}, waited_s=1.0)
    assert "nan" in screen.file.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True)
    clock = Clock()
    with Progress(2, images_per_step=1, title="t", show=True, console=console, clock=clock) as bar:
        clock.now += 1.0
        bar.update(1, {"loss": 0.5}, waited_s=0.0)
    assert "step=1/2" in file.getvalue()


def test_markup_in_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    log.say("[red]not red[/red] :smile: " + "word " * 40)
    assert capsys.readouterr().err == "[red]not red[/red] :smile: " + "word " * 40 + "\n"


def test_only_the_first_process_talks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    log.say("a")
    log.warn("b")
    log.table("c", [("d", "e")])
    monkeypatch.setenv("RANK", "0")
    log.warn("f")
    log.table("plan", [("recipe", "tiny/msn"), ("lr", "[0, 1]")])
    assert capsys.readouterr().err == "warning: f\nplan\n  recipe  tiny/msn\n  lr      [0, 1]\n"


def test_a_reader_who_leaves_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = log._LastingConsole(file=Gone())
    clock = Clock()
    with Progress(3, images_per_step=1, title="t", show=True, console=console, clock=clock) as bar:
        for step in (1, 2, 3):
            clock.now += 20.0
            bar.update(step, {"loss": 0.5}, waited_s=0.0)
    assert console.quiet


def test_a_long_step_is_told_of_within_ten_seconds_and_ever_more_rarely() -> None:
    screen, clock = Screen(terminal=False), Clock()
    told = []
    with progress(screen, clock, total=10) as bar:
        bar.begin("first step: 4,096 images")
        for second in range(1, 151):
            clock.now += 1.0
            before = len(screen.lines)
            bar.look()
            told += [second] * (len(screen.lines) - before)
        bar.update(1, {"loss": 1.0})
        clock.now += 100.0
        bar.look()  # nothing is being done
    assert told[0] <= 10
    assert 3 <= len(told) <= 12
    first, *_, last = screen.lines
    assert "step=0/10 first step: 4,096 images, 8 s so far" in first
    assert "step=1/10" in last


def test_micro_batches_tell_how_long_a_step_will_take() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock) as bar:
        bar.begin("first step: 4,096 images in 64 micro-batches")
        for done in range(1, 193):
            clock.now += 1.5
            bar.part(done, 192)
    assert "4,096 images in 64 micro-batches, 3% done, 9 s so far, about 4 min 39 s left" in screen.lines[0]
    assert len(screen.lines) < 12


def test_short_steps_say_nothing_of_themselves() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with progress(screen, clock, total=1000) as bar:
        for step in range(1, 40):
            bar.begin("this step: 8 images")
            clock.now += 1.0
            bar.look()
            bar.update(step, {"loss": 1.0})
    assert not any("this step" in line for line in screen.lines)


def test_the_bar_shows_what_takes_long() -> None:
    screen, clock = Screen(terminal=True, width=100), Clock()
    with progress(screen, clock) as bar:
        bar.begin("first step: 4,096 images in 64 micro-batches")
        clock.now += 5.0
        bar.part(10, 100)
    assert "64 micro-batches, 10% done, 5 s so far, about 45 s left" in screen.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (40.4, "40 s"),
        (190, "3 min 10 s"),
        (600, "10 min"),
        (1022, "17 min"),
        (11_400, "3 h 10 min"),
        (7_201, "2 h"),
        (90_000, "1 day 1 h"),
        (188_000, "2 days 4 h"),
    ],
)
def test_durations_are_spoken(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (65, "0:01:05"), (183_600, "2 days, 3:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


_HOSTILE = [
    ("plain name ü 日本 \u2764.png", "plain name ü 日本 \u2764.png"),
    ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("\x9b2J", r"\x9b2J"),
    ("a\nerror: b", r"a\nerror: b"),
    ("a\n b", r"a\n b"),
    ("a\r\tb\x00\x08\x0b\x0c\x7f", r"a\r\tb\x00\x08\x0b\x0c\x7f"),
    ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
    ("a\u2066b\u2069\u200e\u061c\ufeff\u200b", r"a\u2066b\u2069\u200e\u061c\ufeff\u200b"),
    ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
    ("\udce9\udcff.png", r"\udce9\udcff.png"),
    ("\U000e0041", r"\U000e0041"),
    ("[red]x[/red] :smile: [link=file:///]y", "[red]x[/red] :smile: [link=file:///]y"),
    ("نمی\u200cخواهم", "نمی\u200cخواهم"),
]


@pytest.mark.parametrize(("name", "shown"), _HOSTILE)
def test_no_name_reaches_the_screen_raw(
    name: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.say(f"read {name}")
    log.warn(name)
    log.table(name, [(name, name), ("key", name)])
    log.output(name)
    progress_lines = Screen(terminal=False)
    with Progress(1, images_per_step=1, title=name, show=True, console=progress_lines.console) as bar:
        bar.update(1, {"loss": 1.0})
    with pytest.raises(SystemExit):
        command_parser("embed", "", examples="").parse_args([name])
    taken = capsys.readouterr()
    assert taken.out == f"{shown}\n"
    said = taken.err.split("\n")
    width = max(len(shown), 3)
    assert said[:5] == [
        f"read {shown}",
        f"warning: {shown}",
        shown,
        f"  {shown:<{width}}  {shown}",
        f"  {'key':<{width}}  {shown}",
    ]
    assert said[-2] == f"belvedere embed: error: unrecognized arguments: {shown}"
    assert f" {shown} step=1/1 " in progress_lines.file.getvalue()


@pytest.mark.parametrize("name", [name for name, _ in _HOSTILE])
def test_nothing_hostile_in_the_cells_of_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, titles and bars as rich lays them out: no control character but rich's own sequences."""
    file = io.StringIO()
    options: dict[str, Any] = {"force_terminal": True, "width": 200, "color_system": None, "file": file}
    console = log._LastingConsole(**options)
    monkeypatch.setattr(log, "_console", lambda: console)
    log.table(name, [(name, name)])
    log.say(name)
    data_summary._print(console, name, [(name, name)])
    grid = Table(name, title=name)
    grid.add_row(name)
    console.print(grid)
    with Progress(1, images_per_step=1, title=name, show=True, console=console) as bar:
        bar.update(1, {name: 1.0})
    written = re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]", "", file.getvalue().replace("\x1b[31mred", "!"))
    left = {char for char in written if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert left <= {"\n", "\r", "\u200c"}
    assert "!" not in written


def test_messages_of_several_lines_keep_lines_that_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    log.say("no file\n  a.png\n  b\nc.png\n    and more")
    assert capsys.readouterr().err == "no file\n  a.png\n  b\\nc.png\n    and more\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "iso8859-15", "utf-8"])
def test_a_console_that_lacks_characters_gets_escapes(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    words = "± 日本 \u2764 é \udce9"
    log.output(words)
    log.say(words)
    log.table(words, [(words, words)])
    table = Table(words)
    table.add_row(log.Text(words))
    log.screen().print(table)
    with Progress(1, images_per_step=1, title=words, show=True) as bar:
        bar.update(1, {"loss": 1.0})
    for stream in streams.values():
        stream.flush()
        written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert r"\udce9" in written
        assert (r"\u65e5\u672c" in written) == (encoding != "utf-8")


def test_nothing_is_printed_past_the_module_that_escapes() -> None:
    root = Path(log.__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        if file == Path(log.__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.ImportFrom(module="rich.text"):
                    found = "rich.text"
                case ast.Call(func=ast.Name(id="print" | "Console" as found)):
                    pass
                case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="stderr"), attr="write" as found)):
                    pass
                case _:
                    continue
            pytest.fail(f"{file}:{getattr(node, 'lineno', 0)}: {found}: print by belvedere.core.log")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_messages_fit_the_terminal_and_commands_stay_whole(width: int) -> None:
    command = "start with: belvedere pretrain tiny/msn " + "train.epochs=20 " * 12
    message = "warning: optim.lr.warmup_epochs: " + "the warm-up takes long " * 10 + "\n  and " + "more " * 40
    path = "/photos/" + "a" * 150
    screen = Screen(terminal=True, width=width)
    for text in (message, command.strip(), f"not read: {path}"):
        log.print_line(screen.console, text)
    lines = screen.lines
    long = [line for line in lines if len(line) > width]
    assert [line.strip() for line in long] == [command.strip(), path]
    assert " ".join(" ".join(lines).split()) == " ".join(f"{message} {command} not read: {path}".split())
    assert any(line.startswith("  and more") for line in lines)
    file = Screen(terminal=False, width=width)
    log.print_line(file.console, message)
    assert len(file.lines) == 2
