"""What `belvedere data check` prints: a screenful for people; what is complete is in `--json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from belvedere.core.files import readable_size
from belvedere.core.log import Text, screen, visible
from belvedere.engine.progress import duration

_SHOWN = 3
_KEYS_SHOWN = 3
_WIDE_ASPECT = 3.0

Row = tuple[str, str]


def print_report(report: Mapping[str, Any]) -> None:
    """Print leakage first, then each source, then copies, to stdout."""
    console = screen()
    if "leakage" in report:
        part, names = report["leakage"], _two_names(report["against"], report)
        style = "bold red" if part["leaked"] else "bold green"
        _print(console, _finding(part, *names), list(_leaked(part)), style=style)
    _print(console, _title(report), list(_rows(report)))
    _print(console, "copies", list(_copies(report["duplicates"])))
    if "kept" in report:
        _print(console, f"kept in {report['kept']['file']}", list(_kept(report)))
    if "against" in report:
        _print(console, f"against {_title(report['against'])}", list(_rows(report["against"])))


def _print(console: Console, title: str, rows: Sequence[Row], *, style: str = "bold") -> None:
    """A title and (what, value) rows; where there is no terminal, a line for each row."""
    console.print(Text(title, style=style), soft_wrap=not console.is_terminal)
    if console.is_terminal:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for what, value in rows:
            grid.add_row(Text(f"  {what}"), Text(value))
        console.print(grid)
    else:
        width = max((len(visible(what)) for what, _ in rows), default=0)
        for what, value in rows:
            console.print(Text(f"  {visible(what):<{width}}  {value}"), soft_wrap=True)
    console.print()


def _name(report: Mapping[str, Any], key: str = "source") -> str:
    split = report["split"]
    return f"{report[key]}" + (f" ({split})" if split else "")


def _two_names(report: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """Their names; what was given on the command line where those are the same."""
    alike = _name(report) == _name(other)
    return (_name(report, "given"), _name(other, "given")) if alike else (_name(report), _name(other))


def _finding(part: Mapping[str, Any], name: str, source: str) -> str:
    num, leaked = part["other_images"], part["leaked"]
    sampled = "" if part["source_complete"] and part["other_complete"] else " (of those looked at)"
    images = "image" if num == 1 else "images"
    if part["same_source"]:
        return f"LEAKAGE: --against is SOURCE itself, so every image of {name!r} leaks"
    if not leaked:
        return f"no leakage found: none of {_number(num)} {images} of {name!r} is in {source!r}{sampled}"
    verb = "is" if leaked == 1 else "are"
    return (
        f"LEAKAGE: {_number(leaked)} of {_number(num)} {images} of {name!r} ({_share(leaked, num)}) {verb} "
        f"also in {source!r}{sampled}"
    )


def _leaked(part: Mapping[str, Any]) -> Iterator[Row]:
    if not part["leaked"]:
        return
    yield "equal pixels", _number(part["equal"])
    if part["compared_near"]:
        yield "near copies", _number(part["near"])
    else:
        yield "near copies", "not looked for (--no-near)"
    for how in ("equal", "near"):
        found = [entry for entry in part["list"] if entry["how"].startswith(how)]
        for number, entry in enumerate(found[:_SHOWN]):
            similar = "" if how == "equal" else f" ({entry['how']}, {entry['similarity']:.3f})"
            yield f"{how}, e.g." if not number else "", entry["other"]
            yield "", f"= {entry['source']}{similar}"


def _title(report: Mapping[str, Any]) -> str:
    num, total = report["images"], report["images_in_source"]
    if num < total:
        return f"{_name(report)}: {_number(num)} of {_number(total)} images, evenly spread (--limit)"
    return f"{_name(report)}: {_number(num)} image{'' if num == 1 else 's'}"


def _rows(report: Mapping[str, Any]) -> Iterator[Row]:
    num, unreadable = report["images"], report["unreadable"]
    yield "readable", f"{_number(report['readable'])} ({_share(report['readable'], num)})"
    if unreadable:
        yield "unreadable", f"{_number(len(unreadable))} ({_share(len(unreadable), num)})"
        for key, reason in list(unreadable.items())[:_SHOWN]:
            yield "", f"{key}: {reason}"
        if len(unreadable) > _SHOWN:
            yield "", f"and {_number(len(unreadable) - _SHOWN)} more"
    for number, remark in enumerate(report["remarks"][:_SHOWN]):
        yield "" if number else "remarks", remark
    if len(report["remarks"]) > _SHOWN:
        yield "", f"and {_number(len(report['remarks']) - _SHOWN)} more (--json)"
    yield (
        "stored",
        f"{readable_size(report['bytes'])}, {readable_size(report['bytes'] / max(1, num))} an image",
    )
    if report["formats"]:
        yield "formats", _listed(report["formats"])
    if report["kinds"]:
        yield "kinds", _listed(report["kinds"])
    for kind, part in report["values"].items():
        yield from _values(kind, part, report["range"])
    if "sizes" in report:
        yield from _sizes(report["sizes"], report["readable"])
    yield from _labels(report["labels"])
    if report["readable"]:
        yield "one pass", _pass(report)


def _values(kind: str, part: Mapping[str, Any], given: Sequence[float] | None) -> Iterator[Row]:
    """What images of more than eight bits hold, and whether that is much of what they could."""
    images = f"{_number(part['images'])} {kind} image{'' if part['images'] == 1 else 's'}"
    told = f"{part['low']:g} to {part['high']:g} in {images}"
    suggested = part.get("suggested_range")
    if given is not None:
        told += f", scaled from {given[0]:g}..{given[1]:g}"
    elif suggested is not None:
        low, high = suggested
        if suggested == [part["low"], part["high"]]:
            told += f": they use {_share(part['share_of_range'], 1)} of the range"
        else:
            told += f", and all but a few from {low:g} to {high:g}"
        first = "converted to TIFF, " if "colors" in kind else ""
        told += f"; {first}data.range=[{low:g},{high:g}] (--range {low:g} {high:g}) scales them"
    elif "share_of_range" not in part and (part["low"] < 0 or part["high"] > 1):
        told += ": each is scaled from its own range; data.range (--range LOW HIGH) gives all the same one"
    yield "values", told
    if part["pixels_without_a_value"]:
        num = part["images_with_such_pixels"]
        yield (
            "",
            f"{_number(part['pixels_without_a_value'])} pixels of {_number(num)} image"
            f"{'' if num == 1 else 's'} have no value (NaN, infinite or nodata) and are black",
        )


def _sizes(sizes: Mapping[str, Any], num: int) -> Iterator[Row]:
    small, large = sizes["smallest"], sizes["largest"]
    if (small["width"], small["height"]) == (large["width"], large["height"]) and num > 1:
        yield "size", f"{_size(small)} px, all alike in area"
    else:
        yield "median size", f"{sizes['median_width']:g} x {sizes['median_height']:g} px"
        yield "smallest", f"{_size(small)} px: {small['key']}"
        yield "largest", f"{_size(large)} px: {large['key']}"
    for what in ("widest", "tallest"):
        entry = sizes[what]
        aspect = entry["width"] / entry["height"]
        if max(aspect, 1 / aspect) >= _WIDE_ASPECT and (aspect > 1) == (what == "widest"):
            yield what, f"{_size(entry)} px: {entry['key']}"
    if sizes["below_view"]:
        below = sizes["below_view"]
        yield (
            f"below {sizes['view_px']} px",
            f"{_number(below)} ({_share(below, num)}) have a side shorter than the usual view",
        )


def _labels(labels: Mapping[str, Any]) -> Iterator[Row]:
    if not labels["labelled"]:
        yield "labels", "none"
        return
    each = labels["images_per_class"]
    spread = (
        f"{_number(each['min'])} each"
        if each["min"] == each["max"]
        else f"{_number(each['min'])} to {_number(each['max'])} images each, median {each['median']:g}"
    )
    classes = labels["classes"]
    yield "labels", f"{_number(classes)} class{'' if classes == 1 else 'es'}, {spread}"
    if labels["unlabelled"]:
        yield "unlabelled", _number(labels["unlabelled"])


def _pass(report: Mapping[str, Any]) -> str:
    """How long reading and decoding the whole source takes, from the processor time spent on this part."""
    each_s = report["decode_seconds"] / report["readable"]
    whole_s = each_s * report["images_in_source"]
    took = duration(whole_s) if whole_s >= 1 else "under a second"
    return f"of decoding: {took} on one core, {_milliseconds(each_s)} an image"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-5 else "under 0.01 ms"


def _copies(part: Mapping[str, Any]) -> Iterator[Row]:
    yield "equal pixels", _found(part["equal"])
    if part["equal_stored"]:
        yield "", f"{_number(part['equal_stored'])} of the copies also equal in every stored byte"
    yield from _groups(part["equal"])
    if "near" not in part:
        yield "near copies", "not looked for (--no-near)"
        return
    near = part["near"]
    yield "near copies", f"{_found(near)}, similarity {_thresholds(near)}"
    if near["not_compared"]:
        yield "", f"{_number(near['not_compared'])} images are too small or too flat to be compared"
    yield from _groups(near)


def _kept(report: Mapping[str, Any]) -> Iterator[Row]:
    part = report["kept"]
    yield "images", f"{_number(part['kept'])} of {_number(report['images'])}"
    near = f", {_number(part['near'])} near copies" if "near" in report["duplicates"] else ""
    yield "left out", f"{_number(part['unreadable'])} unreadable, {_number(part['equal'])} equal{near}"
    if part["conflicts"]:
        groups = "group" if part["conflicts"] == 1 else "groups"
        yield "labels", f"differ in {_number(part['conflicts'])} {groups} of copies: the first one's is kept"
    if "leakage" in report and report["leakage"]["leaked"]:
        yield "leakage", "is not left out: images that --against has too are in the list"


def _thresholds(near: Mapping[str, Any]) -> str:
    return f"{near['threshold']:g} and more (below 64 px {near['threshold_below_64_px']:g})"


def _found(part: Mapping[str, Any]) -> str:
    if not part["groups"]:
        return "none"
    groups = part["groups"]
    return f"{_number(part['surplus'])} to spare in {_number(groups)} group{'' if groups == 1 else 's'}"


def _groups(part: Mapping[str, Any]) -> Iterator[Row]:
    for number, group in enumerate(part["list"][:_SHOWN]):
        yield from _members("  largest" if not number else "", f"{_number(len(group['keys']))} images", group)
    if part["label_conflicts"]:
        groups = "group" if part["label_conflicts"] == 1 else "groups"
        yield "  LABELS DIFFER", f"in {_number(part['label_conflicts'])} {groups}, such as"
        for group in [group for group in part["list"] if len(group["labels"]) > 1][:_SHOWN]:
            yield from _members("", " / ".join(group["labels"][:5]), group)


def _members(what: str, title: str, group: Mapping[str, Any]) -> Iterator[Row]:
    """A title, and below it the first keys of a group, a line each."""
    keys = group["keys"]
    yield what, f"{title}:"
    for key in keys[:_KEYS_SHOWN]:
        yield "", key
    if len(keys) > _KEYS_SHOWN:
        yield "", f"and {_number(len(keys) - _KEYS_SHOWN)} more"


def _listed(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{_number(count)} {name}" for name, count in counts.items())


def _size(entry: Mapping[str, Any]) -> str:
    return f"{entry['width']} x {entry['height']}"


def _number(value: int) -> str:
    return f"{value:,}"


def _share(part: int, whole: int) -> str:
    """In percent, but never 0 % of something nor 100 % of less than all."""
    percent = 100 * part / whole if whole else 0.0
    if part and percent < 0.1:
        return "under 0.1 %"
    if part < whole and percent > 99.9:
        return "over 99.9 %"
    return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"
