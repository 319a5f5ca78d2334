"""Readings put into PAGE XML or ALTO: the file that was given, with the texts that were read in place of its own."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rigfit.recipes.ocr.pages import Kind, Page, alto_lines, children, local_name, page_lines, parse_xml

_AFTER_TEXT = frozenset({"TextStyle", "UserDefined", "Labels"})
"""What PAGE's schema puts behind a line's TextEquiv."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of one line, and how sure the model was (0 to 1)."""

    text: str
    confidence: float


def fill_page(page: Page, readings: Sequence[Reading | None], path: Path) -> None:
    """Write `page` to `path` with each line's text replaced; a line whose reading is None is left without text.

    Args:
        page: As it was read.
        readings: One per line, in reading order.
        path: The new file.
    """
    root = parse_xml(page.path)
    namespace = root.tag.rpartition("}")[0].lstrip("{")
    _name_spaces(page.path)
    element = next(found for found in root.iter() if local_name(found) == "Page")
    lines = page_lines(element) if page.kind == "page" else alto_lines(element)
    for line, reading in zip(lines, readings, strict=True):
        _clear(line, page.kind)
        if reading is not None:
            _fill(line, reading, page.kind, namespace)
    if page.kind == "page":  # a region's own text repeats its lines', and would now contradict them
        for region in element.iter():
            if local_name(region) == "TextRegion":
                _remove(region, "TextEquiv")
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _clear(line: ET.Element, kind: Kind) -> None:
    for name in ("TextEquiv", "Word") if kind == "page" else ("String", "SP", "HYP"):
        _remove(line, name)


def _fill(line: ET.Element, reading: Reading, kind: Kind, namespace: str) -> None:
    prefix = f"{{{namespace}}}" if namespace else ""
    sure = f"{reading.confidence:.4f}"
    if kind == "alto":
        measures = ("HPOS", "VPOS", "WIDTH", "HEIGHT")
        box: dict[str, str] = {key: line.attrib[key] for key in measures if key in line.attrib}
        ET.SubElement(line, f"{prefix}String", {"CONTENT": reading.text, "WC": sure, **box})
        return
    said = ET.Element(f"{prefix}TextEquiv", {"conf": sure})
    ET.SubElement(said, f"{prefix}Unicode").text = reading.text
    behind = [number for number, child in enumerate(line) if local_name(child) in _AFTER_TEXT]
    line.insert(behind[0] if behind else len(line), said)


def _remove(element: ET.Element, name: str) -> None:
    for child in list(children(element, name)):
        element.remove(child)


def _name_spaces(path: Path) -> None:
    """Keep the prefixes of the file, where the library would write ns0, ns1, ..."""
    for _, (prefix, uri) in ET.iterparse(io.BytesIO(path.read_bytes()), events=("start-ns",)):
        # A prefix like ns0 is the library's own and cannot be registered.
        if not (prefix.startswith("ns") and prefix[2:].isdigit()):
            ET.register_namespace(prefix, uri)
