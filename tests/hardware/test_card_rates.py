"""The rates in the catalogue, held against what the chips are built of: bus width and pin rate, cores and clock."""

import pytest

from rigfit.hardware.catalogue import lookup, read_catalogue

# Gbit/s per pin that parts of this kind are sold with: the JEDEC standards and the makers' catalogues.
PIN_RATES = {
    "GDDR5": (6, 8.1),
    "GDDR5X": (10, 11.5),
    "GDDR6": (10, 20.1),
    "GDDR6X": (19, 23),
    "GDDR7": (24, 32),
    "HBM2": (1.4, 2.45),
    "HBM2e": (3.0, 3.6),
    "HBM3": (5.0, 6.4),
    "HBM3e": (6.2, 9.2),
}

# Bus width in bits and kind of memory, from NVIDIA's product pages.
MEMORY = {
    "1080-ti": (352, "GDDR5X"),
    "1650": (128, "GDDR5"),
    "titan-rtx": (384, "GDDR6"),
    "2060": (192, "GDDR6"),
    "2070": (256, "GDDR6"),
    "2080": (256, "GDDR6"),
    "2080-ti": (352, "GDDR6"),
    "3060": (192, "GDDR6"),
    "3070": (256, "GDDR6"),
    "3080": (320, "GDDR6X"),
    "3090": (384, "GDDR6X"),
    "3090-ti": (384, "GDDR6X"),
    "4060": (128, "GDDR6"),
    "4060-ti": (128, "GDDR6"),
    "4070": (192, "GDDR6X"),
    "4070-ti": (192, "GDDR6X"),
    "4080": (256, "GDDR6X"),
    "4090": (384, "GDDR6X"),
    "5070": (192, "GDDR7"),
    "5070-ti": (256, "GDDR7"),
    "5080": (256, "GDDR7"),
    "5090": (512, "GDDR7"),
    "a4000": (256, "GDDR6"),
    "a5000": (384, "GDDR6"),
    "a6000": (384, "GDDR6"),
    "rtx-6000-ada": (384, "GDDR6"),
    "rtx-pro-6000": (512, "GDDR7"),
    "rtx-pro-6000-server": (512, "GDDR7"),
    "p100": (4096, "HBM2"),
    "p100-sxm2": (4096, "HBM2"),
    "v100-16gb": (4096, "HBM2"),
    "v100-pcie": (4096, "HBM2"),
    "v100-32gb": (4096, "HBM2"),
    "v100-pcie-32": (4096, "HBM2"),
    "t4": (256, "GDDR6"),
    "a10": (384, "GDDR6"),
    "a10g": (384, "GDDR6"),
    "a30": (3072, "HBM2"),
    "a40": (384, "GDDR6"),
    "a100-40gb": (5120, "HBM2"),
    "a100-pcie-40": (5120, "HBM2"),
    "a100-80gb": (5120, "HBM2e"),
    "a100-pcie": (5120, "HBM2e"),
    "l4": (192, "GDDR6"),
    "l40": (384, "GDDR6"),
    "l40s": (384, "GDDR6"),
    "h100": (5120, "HBM3"),
    "h100-pcie": (5120, "HBM2e"),
    "h100-nvl": (6144, "HBM3"),
    "h200": (6144, "HBM3e"),
    "gh200": (6144, "HBM3"),
    "b200": (7680, "HBM3e"),
}

# fp32 cores per multiprocessor: CUDA C++ Programming Guide, compute capabilities, arithmetic instructions.
CORES = {(6, 0): 64, (6, 1): 128, (7, 0): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 9): 128}

# Dense fp16 tensor operations with fp32 accumulation per multiprocessor and clock: the architecture whitepapers.
FULL_RATE = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192}
# GeForce RTX cards have half of it, and so have the A10G and the L40 by their data sheets.
HALVED = {"NVIDIA A10G", "NVIDIA L40"}

every_card = pytest.mark.parametrize("entry", read_catalogue(), ids=lambda entry: entry.aliases[0])


def is_halved(entry):
    return "GeForce" in entry.name or entry.name in HALVED


def test_the_kind_of_memory_is_known_for_every_card():
    assert [lookup(name) for name in MEMORY] == list(read_catalogue())


@pytest.mark.parametrize("name", MEMORY)
def test_bandwidth_is_bus_width_times_a_pin_rate_of_that_kind_of_memory(name):
    width, kind = MEMORY[name]
    slowest, fastest = PIN_RATES[kind]
    assert slowest <= lookup(name).bandwidth_gb_s * 8 / width <= fastest


@every_card
def test_fp32_is_two_operations_per_core_at_a_clock_that_chips_run_at(entry):
    cores = entry.sms * CORES.get(entry.capability, 128)
    gigahertz = entry.fp32_tflops * 1000 / (2 * cores)
    assert 1.25 <= gigahertz <= 2.65


@every_card
def test_tensor_cores_do_what_the_whitepaper_says_per_clock(entry):
    if entry.fp16_tensor_tflops is None:
        assert entry.capability < (7, 0) or entry.name == "NVIDIA GeForce GTX 1650"  # Turing without tensor cores
        return
    gigahertz = entry.fp32_tflops * 1000 / (2 * entry.sms * CORES.get(entry.capability, 128))
    per_clock = FULL_RATE.get(entry.capability, 1024) / (2 if is_halved(entry) else 1)
    expected = entry.sms * per_clock * gigahertz / 1000
    # Hopper's and Blackwell's tensor cores run at a lower clock than its plain ones: 1.83 and 1.98 GHz on an H100.
    lowest = 0.86 if entry.capability in ((9, 0), (10, 0)) else 0.98
    assert lowest * expected <= entry.fp16_tensor_tflops <= 1.02 * expected


@every_card
def test_bf16_is_as_fast_as_fp16_and_tf32_half_as_fast_from_capability_8_on(entry):
    if entry.capability < (8, 0):
        assert (entry.bf16_tensor_tflops, entry.tf32_tensor_tflops) == (None, None)
    else:
        assert entry.bf16_tensor_tflops == entry.fp16_tensor_tflops
        assert entry.tf32_tensor_tflops == pytest.approx(entry.fp16_tensor_tflops / 2, rel=0.02)


@every_card
def test_no_tensor_core_is_slower_than_the_plain_ones(entry):
    assert entry.fp16_tensor_tflops is None or entry.fp16_tensor_tflops >= entry.fp32_tflops
    assert entry.tf32_tensor_tflops is None or entry.tf32_tensor_tflops >= 0.99 * entry.fp32_tflops


# NVLink links times the rate of one, both directions: the architecture whitepapers.
@pytest.mark.parametrize(
    ("name", "num_links", "rate"),
    [
        ("p100-sxm2", 4, 40),
        ("v100", 6, 50),
        ("titan-rtx", 2, 50),
        ("2080-ti", 2, 50),
        ("2080", 1, 50),
        ("3090", 4, 28.125),
        ("a6000", 4, 28.125),
        ("a40", 4, 28.125),
        ("a30", 4, 50),
        ("a100-40gb", 12, 50),
        ("h100", 18, 50),
        ("h100-pcie", 12, 50),
        ("h200", 18, 50),
        ("b200", 18, 100),
    ],
)
def test_nvlink_is_links_times_rate(name, num_links, rate):
    assert lookup(name).nvlink_gb_s == num_links * rate


@pytest.mark.parametrize("name", ["t4", "4090", "5090", "l4", "l40s", "rtx-6000-ada", "3060", "p100", "v100-pcie"])
def test_boards_without_nvlink_have_none(name):
    assert lookup(name).nvlink_gb_s is None
