"""docs/cards.md shows the catalogue; on a change, copy the table that the failing test prints."""

from pathlib import Path

from rigfit.hardware.catalogue import CatalogueEntry, read_catalogue
from rigfit.units import GIB

PAGE = Path(__file__).parents[2] / "docs" / "cards.md"
HEAD = (
    "| type | card | compute capability | memory on the box | memory CUDA shows | GB/s | fp32 TFLOPS | fp16 TFLOPS |",
    "|---|---|---|---|---|---|---|---|",
)


def row(entry: CatalogueEntry) -> str:
    shown = f"{entry.memory_bytes / GIB:.2f} GiB" + ("" if entry.visible_mib is not None else " (assumed)")
    tensor = "-" if entry.fp16_tensor_tflops is None else f"{entry.fp16_tensor_tflops:g}"
    cells = (
        f"`{entry.aliases[0]}`",
        entry.name,
        f"{entry.capability[0]}.{entry.capability[1]}",
        f"{entry.memory_gib} GB",
        shown,
        f"{entry.bandwidth_gb_s:g}",
        f"{entry.fp32_tflops:g}",
        tensor,
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    return "\n".join((*HEAD, *(row(entry) for entry in read_catalogue())))


def test_the_page_of_cards_shows_the_catalogue():
    text = PAGE.read_text(encoding="utf-8")
    shown = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert shown == table(), f"The table in docs/cards.md should be\n\n{table()}\n"
