"""What a step would hold with AdamW's moments in 8 bits, from one that was read with moments in 32."""

from __future__ import annotations

from dataclasses import replace

from rigfit.planning.trace import Kind, Line, Storage, Trace

# bitsandbytes/optim/optimizer.py: one float32 scale for 256 elements, fewer than 4096 elements stay in 32 bits, and
# the two maps of 256 float32 that all parameters share.
_BLOCK = 256
_SMALLEST_CODED = 4096
_MAP_BYTES = 2 * 256 * 4
_FLOAT_BYTES = 4


def in_8_bits(trace: Trace) -> Trace | None:
    """Return `trace` as it would be for a GPU with `optimizer=adamw8bit`, to a few KiB.

    None where that is not known: on the CPU, whose kernels copy the moments, and where moments are not float32.
    """
    types = {call.details for call in trace.calls if "_fused_adamw" in call.operator}
    if trace.device_kind != "cuda" or types != {"float32"}:
        return None
    storages = tuple(_coded(storage) if storage.kind is Kind.OPTIMIZER else storage for storage in trace.storages)
    first = next((n for n, pair in enumerate(zip(storages, trace.storages, strict=True)) if pair[0] != pair[1]), None)
    if first is None:
        return None
    with_maps = storages[first]._replace(num_bytes=Line(storages[first].num_bytes.fixed + _MAP_BYTES, 0.0))
    return replace(trace, storages=(*storages[:first], with_maps, *storages[first + 1 :]))


def _coded(storage: Storage) -> Storage:
    """Return a moment of 1 byte an element with its scales; one that is too small for that as it was."""
    num_elements = int(storage.num_bytes.fixed) // _FLOAT_BYTES
    if num_elements < _SMALLEST_CODED:
        return storage
    scales = -(-num_elements // _BLOCK)
    return storage._replace(num_bytes=Line(num_elements + scales * _FLOAT_BYTES, 0.0))
