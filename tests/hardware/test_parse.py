import re

import pytest

from rigfit.errors import UsageError
from rigfit.hardware.catalogue import lookup, read_catalogue
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Device
from rigfit.units import GIB, MIB


def card(index, name, memory_gib, capability=(7, 5)):
    return Device(
        kind="cuda",
        name=name,
        index=index,
        memory_bytes=int(memory_gib * GIB),
        capability=capability,
        num_threads=0,
        source="driver",
    )


TITANS = (card(0, "NVIDIA TITAN RTX", 23.65), card(1, "NVIDIA TITAN RTX", 23.65))


def rig(text, *gpus, num_cores=4):
    return parse_rig(text, gpus=gpus, num_cores=num_cores)


@pytest.mark.parametrize("text", [None, "auto"])
def test_auto_is_every_gpu_here_or_one_cpu_rank(text):
    assert rig(text, *TITANS).devices == TITANS
    alone = rig(text)
    assert (alone.kind, alone.world_size, alone.is_here) == ("cpu", 1, True)
    assert alone.devices[0].source == "this machine, on which CUDA finds no GPU"


@pytest.mark.parametrize(("text", "num_ranks", "num_threads"), [("cpu", 1, 4), ("cpu:2", 2, 2), ("CPU:4", 4, 1)])
def test_cpu_ranks_share_the_cores(text, num_ranks, num_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = rig(text, *TITANS)
    assert [device.num_threads for device in found.devices] == [num_threads] * num_ranks
    assert found.is_here


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("0", [0]),
        ("1", [1]),
        ("0,1", [0, 1]),
        ("1, 0", [1, 0]),
        ("cuda:1", [1]),
        ("cuda:0,1", [0, 1]),
        ("cuda", [0, 1]),
    ],
)
def test_digits_are_indexes_of_visible_gpus(text, indexes):
    found = rig(text, *TITANS)
    assert [device.index for device in found.devices] == indexes
    assert found.is_here


@pytest.mark.parametrize(
    "text", ["2x titan-rtx", "2x-titan-rtx", "2xTITAN RTX", "titan-rtx,titan-rtx", "1x titan-rtx, titan-rtx"]
)
def test_named_cards_come_from_the_catalogue_when_they_are_not_here(text):
    found = rig(text)
    assert not found.is_here
    assert [device.index for device in found.devices] == [0, 1]
    assert {(device.name, device.memory_bytes, device.source) for device in found.devices} == {
        ("NVIDIA TITAN RTX", 24212 * MIB, "catalogue")
    }


def test_named_cards_that_are_here_are_the_real_ones():
    assert rig("2x titan-rtx", *TITANS).devices == TITANS
    assert rig("titan-rtx", *TITANS).devices == TITANS[:1]
    assert rig("2x titan-rtx", *TITANS).is_here


def test_more_cards_than_are_here_is_another_machine():
    found = rig("4x titan-rtx", *TITANS)
    assert (found.is_here, found.world_size) == (False, 4)
    assert {device.source for device in found.devices} == {"catalogue"}


def test_a_card_of_the_same_name_with_half_the_memory_is_another_card():
    small = card(0, "NVIDIA GeForce RTX 4060 Ti", 7.99, (8, 9))
    assert not rig("4060-ti-16gb", small).is_here
    assert rig("NVIDIA GeForce RTX 4060 Ti", small).is_here


def test_a_card_here_that_the_catalogue_lacks_can_be_named():
    odd = card(0, "NVIDIA Something New", 20)
    assert rig("something-new", odd).devices == (odd,)


def test_digits_that_name_no_index_here_name_cards():
    found = rig("4090,3060", *TITANS)
    assert [device.name for device in found.devices] == ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060"]
    assert [device.capability for device in found.devices] == [(8, 9), (8, 6)]
    assert not found.is_here


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8x a100-80gb", 8, "NVIDIA A100-SXM4-80GB"),
        ("8xA100-80GB", 8, "NVIDIA A100-SXM4-80GB"),
        ("2x t4", 2, "Tesla T4"),
        ("2x-t4", 2, "Tesla T4"),
        ("4x 4090", 4, "NVIDIA GeForce RTX 4090"),
        ("2x5070-ti", 2, "NVIDIA GeForce RTX 5070 Ti"),
        ("2x h100-pcie", 2, "NVIDIA H100 PCIe"),
        ("1x t4 + 1x t4", 2, "Tesla T4"),
        ("4x rtx-6000-ada", 4, "NVIDIA RTX 6000 Ada Generation"),
    ],
)
def test_a_count_and_a_name_with_digits_are_told_apart(text, count, name):
    found = rig(text)
    assert [device.name for device in found.devices] == [name] * count


def test_a_rig_may_be_written_as_plans_name_it():
    assert rig("1x t4 + 2x 3090") == rig("t4,2x 3090")


def test_memory_that_nobody_published_is_called_assumed():
    (device,) = rig("rtx-2070").devices
    assert device.memory_bytes < 8 * GIB
    assert device.source == "catalogue (memory assumed: marketed memory, less 5.4 % that the driver may keep)"


@pytest.mark.parametrize("alias", [entry.aliases[0] for entry in read_catalogue()])
def test_a_card_here_is_taken_for_the_named_one(alias):
    entry = lookup(alias)
    assert rig(alias, card(0, entry.name, entry.memory_gib, entry.capability)).is_here  # as nvidia-smi counts
    assert rig(alias, card(0, entry.name, entry.memory_bytes / GIB, entry.capability)).is_here  # as CUDA counts


@pytest.mark.parametrize("text", ["0,1", "cuda:0", "cuda", "3"])
def test_no_gpu_is_answered_with_a_rig_that_works(text):
    with pytest.raises(UsageError, match=r"there is no GPU on this machine") as caught:
        rig(text)
    assert caught.value.exit_code == 2
    assert "--rig cpu:2" in caught.value.remedy
    assert rig("cpu:2").world_size == 2
    assert rig("2x-titan-rtx").world_size == 2


def test_an_absent_index_is_answered_with_those_there_are():
    with pytest.raises(UsageError, match=r"There is no GPU 5 here; there are 0,1\.\nUse --rig 0,1"):
        rig("0,5", *TITANS)
    assert rig("0,1", *TITANS).world_size == 2


def test_more_cpu_ranks_than_cores_is_answered_with_a_number_that_works():
    with pytest.raises(UsageError, match=r"8 CPU ranks need 8 cores; this machine grants 4\.\nUse --rig cpu:4"):
        rig("cpu:8")
    assert rig("cpu:4").world_size == 4


@pytest.mark.parametrize(
    "text", ["cpu:0", "cpux", "cpu:", "0,0", "0x titan-rtx", "titan-rtx,", "", "cuda:x", "99999x t4"]
)
def test_what_is_no_rig_is_a_usage_error_with_a_remedy(text):
    with pytest.raises(UsageError) as caught:
        rig(text, *TITANS)
    assert caught.value.remedy


def test_an_unknown_card_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"titan-rtz.*\n.*titan-rtx"):
        rig("2x titan-rtz")


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("0.5x t4", "0.5 is no number of cards", "1x t4"),
        ("0x t4", "0 is no number of cards", "2x t4"),
        ("-1x titan-rtx", "-1 is no number of cards", "1x titan-rtx"),
        ("2.0x t4", "2.0 is no number of cards", "1x t4"),
        ("2*t4", "`*` does not count cards", "2x t4"),
        ("3x", "counts cards and names none", "3x t4"),
        ("t4,", "empty place beside a comma", "t4"),
        ("4090,,3060", "empty place beside a comma", "4090,3060"),
        ("t4 +", "empty place beside a plus", "t4"),
        ("+0x t4", "+0 is no number of cards", "2x t4"),
        (",", "names nothing", "2x-titan-rtx"),
    ],
)
def test_a_count_or_a_list_that_is_none_is_told_with_one_that_works(text, cause, remedy):
    with pytest.raises(UsageError, match=re.escape(cause)) as caught:
        parse_rig(text, gpus=(), num_cores=4)
    assert f"`{text}`" in caught.value.cause
    assert remedy in caught.value.remedy
    assert parse_rig(remedy, gpus=(), num_cores=4).world_size >= 1
