"""What the driver answers is recorded here and handed over as an argument; no GPU is needed."""

import os
from collections import namedtuple

import pytest

from rigfit.hardware.detect import count_cores, cpu_devices, detect_gpus
from rigfit.units import MIB

Memory = namedtuple("Memory", "total free used")
Card = namedtuple("Card", "name uuid memory_mib capability")

TITAN = Card("NVIDIA TITAN RTX", "GPU-11111111-aaaa", 24220, (7, 5))
SMALL = Card("NVIDIA GeForce RTX 3060", "GPU-22222222-bbbb", 12288, (8, 6))
TWIN = Card("NVIDIA TITAN RTX", "GPU-11111111-cccc", 24220, (7, 5))
SLICE = Card("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "MIG-33333333-dddd", 9728, None)
WHOLE = Card("NVIDIA A100-SXM4-80GB", "GPU-44444444-eeee", 81920, (8, 0))


class RecordedDriver:
    """Answers as a driver with these cards does."""

    class NVMLError(Exception):
        pass

    def __init__(self, *cards, slices=(), loaded=True):
        self.cards, self.slices, self.loaded = cards, slices, loaded
        self.open_sessions = 0

    def nvmlInit(self):  # noqa: N802
        if not self.loaded:
            raise self.NVMLError("Driver Not Loaded")
        self.open_sessions += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open_sessions -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        for part in self.slices:
            if part.uuid == uuid:
                return part
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):  # noqa: N802
        assert handle in self.slices
        return self.cards[0]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return handle.uuid

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return handle.name.encode() if handle is TWIN else handle.name

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return Memory(handle.memory_mib * MIB, 0, 0)

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return handle.capability


def seen(visible, *cards, slices=()):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    driver = RecordedDriver(*cards, slices=slices)
    devices = detect_gpus(driver, environ)
    assert driver.open_sessions == 0
    assert [device.index for device in devices] == list(range(len(devices)))
    return [(device.name, device.memory_bytes // MIB) for device in devices]


BIG, LITTLE = ("NVIDIA TITAN RTX", 24220), ("NVIDIA GeForce RTX 3060", 12288)


def test_without_a_driver_there_are_no_gpus():
    assert detect_gpus(RecordedDriver(TITAN, loaded=False), {}) == ()


def test_a_card_is_described_as_the_driver_reports_it():
    (device,) = detect_gpus(RecordedDriver(TITAN), {})
    assert device.kind == "cuda"
    assert device.name == "NVIDIA TITAN RTX"
    assert device.memory_bytes == 24220 * MIB
    assert device.capability == (7, 5)
    assert device.source == "driver"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [BIG, LITTLE]),
        ("0,1", [BIG, LITTLE]),
        ("1,0", [LITTLE, BIG]),
        ("1", [LITTLE]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", [LITTLE]),  # CUDA stops reading at the first index that does not exist
        ("0,0", []),  # and shows nothing when one is repeated
        ("GPU-22222222-bbbb", [LITTLE]),
        ("GPU-2", [LITTLE]),
        ("GPU-2,GPU-1", [LITTLE, BIG]),
        ("GPU-9", []),
        (" 1 , 0 ", [LITTLE, BIG]),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(visible, expected):
    assert seen(visible, TITAN, SMALL) == expected


def test_the_beginning_of_a_uuid_must_be_unique():
    assert seen("GPU-1", TITAN, TWIN) == []
    assert seen("GPU-11111111-c", TITAN, TWIN) == [BIG]


def test_a_slice_of_a_card_has_its_own_memory_and_the_capability_of_the_card():
    environ = {"CUDA_VISIBLE_DEVICES": SLICE.uuid}
    (device,) = detect_gpus(RecordedDriver(WHOLE, slices=(SLICE,)), environ)
    assert device.memory_bytes == 9728 * MIB
    assert device.capability == (8, 0)
    assert seen("MIG-nobody", WHOLE, slices=(SLICE,)) == []


def test_the_real_library_can_be_asked_on_any_machine():
    for device in detect_gpus():
        assert device.memory_bytes > 0


def test_cpu_ranks_share_cores_and_memory(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one, two = cpu_devices(1, 8), cpu_devices(2, 8)
    assert one[0].num_threads == 8
    assert [(device.index, device.num_threads) for device in two] == [(0, 4), (1, 4)]
    assert 0 < two[0].memory_bytes < 0.75 * one[0].memory_bytes
    assert cpu_devices(3, 2)[2].num_threads == 1


@pytest.mark.parametrize(("said", "num_threads"), [("3", 3), ("3,2", 3), ("0", 4), ("", 4), ("many", 4)])
def test_omp_num_threads_is_what_a_rank_takes(said, num_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert [device.num_threads for device in cpu_devices(2, 8)] == [num_threads] * 2


def test_the_cores_are_those_this_process_may_use():
    assert 1 <= count_cores() <= (os.cpu_count() or 1)
