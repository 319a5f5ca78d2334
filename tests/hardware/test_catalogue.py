import pytest

from rigfit.errors import UsageError
from rigfit.hardware.catalogue import (
    UNSEEN_PER_MILLE,
    card_of,
    find,
    lookup,
    normalise,
    parse_catalogue,
    read_catalogue,
)
from rigfit.hardware.rig import Device
from rigfit.units import GIB, MIB

CARD = """
[[gpu]]
name = "Tesla T4"
aliases = ["t4"]
memory_gib = 16
capability = [7, 5]
inline_ecc = true
source = "data sheet"
visible_mib = 14913
visible_source = "a log"
bandwidth_gb_s = 320
fp32_tflops = 8.1
fp16_tensor_tflops = 65
sms = 40
pcie = "3.0 x16"
rates_source = "data sheet"
"""


def test_no_two_cards_share_a_name():
    names = [name for entry in read_catalogue() for name in {normalise(word) for word in (entry.name, *entry.aliases)}]
    assert len(names) == len(set(names))


def test_every_card_has_sources_and_a_plausible_size():
    for entry in read_catalogue():
        assert entry.source
        assert entry.rates_source
        assert 4 <= entry.memory_gib <= 288
        assert (6, 0) <= entry.capability <= (12, 0)
        assert 0.9 * entry.marketed_bytes <= entry.memory_bytes <= entry.marketed_bytes


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("bandwidth_gb_s = 320", "", "bandwidth_gb_s = None is no number"),
        ("bandwidth_gb_s = 320", 'bandwidth_gb_s = "320"', "bandwidth_gb_s = '320' is no number"),
        ("bandwidth_gb_s = 320", "bandwidth_gb_s = 0.32", "bandwidth_gb_s = 0.32 is not in 50..20000"),
        ("fp32_tflops", "fp32_tflop", "nothing is called fp32_tflop"),
        ("sms = 40", "sms = 40.5", "sms = 40.5 is no whole number"),
        ("visible_mib = 14913", "visible_mib = 16385", "more memory is visible than there is"),
        ('visible_source = "a log"', "", "visible memory without a source"),
        ('visible_source = "a log"', 'visible_source = ""', "visible_source is empty"),
        ("3.0 x16", "PCIe 3", "is no generation and lanes"),
    ],
)
def test_a_card_written_wrongly_is_told_with_its_name(right, wrong, said):
    assert right in CARD
    with pytest.raises(AssertionError, match="Tesla T4") as caught:
        parse_catalogue(CARD.replace(right, wrong))
    assert said in str(caught.value)


def test_two_cards_of_one_name_are_refused():
    with pytest.raises(AssertionError, match=r"`t4` names both Tesla T4 and NVIDIA T4x"):
        parse_catalogue(CARD + CARD.replace("Tesla T4", "NVIDIA T4x"))


@pytest.mark.parametrize(
    ("word", "memory_gib", "capability"),
    [
        ("titan-rtx", 24, (7, 5)),
        ("TITAN RTX", 24, (7, 5)),
        ("NVIDIA TITAN RTX", 24, (7, 5)),
        ("4090", 24, (8, 9)),
        ("rtx4090", 24, (8, 9)),
        ("GeForce RTX 3060", 12, (8, 6)),
        ("a100-80gb", 80, (8, 0)),
        ("A100 40GB", 40, (8, 0)),
        ("h200", 141, (9, 0)),
        ("V100-32GB", 32, (7, 0)),
        ("1080 Ti", 11, (6, 1)),
    ],
)
def test_a_card_is_found_under_every_spelling(word, memory_gib, capability):
    entry = lookup(word)
    assert (entry.memory_gib, entry.capability) == (memory_gib, capability)


def test_a_card_has_the_memory_that_cuda_shows():
    # The out-of-memory message on a T4 says 14.56 GiB (Zheng-Chong/CatVTON#133), on an A30 23.53 (RB-Modulation#5).
    assert f"{lookup('t4').memory_bytes / GIB:.2f}" == "14.56"
    assert f"{lookup('a30').memory_bytes / GIB:.2f}" == "23.53"
    assert lookup("titan-rtx").memory_bytes == 24212 * MIB


def test_where_nobody_published_it_the_worst_share_seen_is_taken_off():
    assert lookup("rtx-2070").memory_bytes == 8 * GIB * 946 // 1000 + 1
    without_figure = "\n".join(line for line in CARD.splitlines() if "visible" not in line)
    (entry,) = parse_catalogue(without_figure)
    assert entry.memory_bytes == pytest.approx(15360 * MIB * 0.946, abs=1)  # nvidia-smi shows 15360 MiB on a T4
    assert entry.memory_source == (
        "assumed: marketed memory, less 1/16 for error correction, less 5.4 % that the driver may keep"
    )


def test_no_card_of_8_gib_or_more_hides_a_larger_share_than_is_assumed():
    hidden = []
    for entry in read_catalogue():
        if entry.visible_mib is not None and entry.memory_gib >= 8:
            at_hand = entry.memory_gib * 1024
            at_hand -= at_hand // 16 if entry.inline_ecc else 0
            hidden.append(1000 * (at_hand - entry.visible_mib) / at_hand)
    assert max(hidden) == pytest.approx(UNSEEN_PER_MILLE, abs=1)
    assert max(hidden) <= UNSEEN_PER_MILLE


def test_several_near_names_are_told_in_the_plural():
    with pytest.raises(UsageError) as caught:
        lookup("rtx-3000")
    nearest = caught.value.remedy.removeprefix("The nearest names are ").rstrip(".").split(", ")
    assert len(nearest) > 1
    assert all(find(name) is not None for name in nearest)


def test_an_unknown_card_is_answered_with_names_that_work():
    with pytest.raises(UsageError, match=r"No GPU named `titan-rtz` is in the catalogue") as caught:
        lookup("titan-rtz")
    assert caught.value.exit_code == 2
    nearest = caught.value.remedy.removeprefix("The nearest name is ").rstrip(".").split(", ")
    assert nearest[0] == "titan-rtx"
    assert all(find(name) is not None for name in nearest)


def test_a_name_like_no_other_is_answered_with_the_whole_list():
    with pytest.raises(UsageError, match=r"titan-rtx.*b200"):
        lookup("!?")


@pytest.mark.parametrize(
    ("printed", "alias"),
    [
        ("NVIDIA TITAN RTX", "titan-rtx"),
        ("TITAN RTX", "titan-rtx"),
        ("GeForce RTX 2080 Ti", "rtx-2080-ti"),
        ("NVIDIA GeForce RTX 3060", "rtx-3060"),
        ("NVIDIA GeForce RTX 3090 Ti", "3090-ti"),
        ("NVIDIA GeForce RTX 4060 Ti", "4060-ti-16"),
        ("NVIDIA GeForce RTX 4070 Ti", "4070-ti"),
        ("NVIDIA GeForce RTX 5070 Ti", "5070-ti"),
        ("NVIDIA GeForce RTX 5090", "5090"),
        ("Tesla T4", "t4"),
        ("NVIDIA Tesla T4", "t4"),
        ("Tesla P100-PCIE-16GB", "p100"),
        ("Tesla P100-SXM2-16GB", "p100-sxm2"),
        ("Tesla V100-SXM2-16GB", "v100-16"),
        ("Tesla V100-PCIE-16GB", "v100-pcie"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A30", "a30"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("A100-SXM-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GH200 120GB", "gh200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_the_name_that_the_driver_prints_is_the_card_that_people_type(printed, alias):
    assert find(printed) is not None
    assert find(printed) is find(alias)


def detected(name, memory_mib, kind="cuda"):
    return Device(
        kind=kind,
        name=name,
        index=0,
        memory_bytes=memory_mib * MIB,
        capability=(0, 0),
        num_threads=0,
        source="driver",
    )


def test_a_device_leads_to_its_card():
    assert card_of(detected("NVIDIA GeForce RTX 3080", 10240)) is lookup("3080")
    assert card_of(detected("NVIDIA GeForce RTX 3080", 12288)) is None  # the later board, with 70 multiprocessors
    assert card_of(detected("NVIDIA GeForce RTX 4060 Ti", 8188)) is None
    assert card_of(detected("Tesla T4", 15360)) is lookup("t4")
    assert card_of(detected("NVIDIA GeForce GTX 1650", 3716)) is lookup("1650")
    assert card_of(detected("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728)) is None
    assert card_of(detected("NVIDIA Something New", 20480)) is None
    assert card_of(detected("T4", 15360, kind="cpu")) is None


@pytest.mark.parametrize(
    ("word", "told"), [("a100", ("a100-40gb", "a100-80gb")), ("rtx4090ti", ("rtx-4090",)), ("2 4090", ("rtx-4090",))]
)
def test_a_name_that_goes_on_or_stops_short_is_told_the_cards_it_begins(word, told):
    with pytest.raises(UsageError) as caught:
        lookup(word)
    assert all(name in caught.value.remedy for name in told)
