import pytest

from rigfit.errors import UsageError
from rigfit.hardware.catalogue import find, lookup, normalise, read_catalogue
from rigfit.units import GIB, MIB


def test_no_two_cards_share_a_name():
    names = [name for entry in read_catalogue() for name in {normalise(word) for word in (entry.name, *entry.aliases)}]
    assert len(names) == len(set(names))


def test_every_card_has_a_source_and_a_plausible_size():
    for entry in read_catalogue():
        assert entry.source
        assert 4 <= entry.memory_gib <= 288
        assert (6, 0) <= entry.capability <= (12, 0)


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


def test_error_correction_takes_its_share_of_a_t4():
    # nvidia-smi shows 15360 MiB on a T4 as delivered.
    assert lookup("t4").memory_bytes == 15360 * MIB
    assert lookup("titan-rtx").memory_bytes == 24 * GIB


def test_an_unknown_card_is_answered_with_names_that_work():
    with pytest.raises(UsageError, match=r"No GPU named `titan-rtz` is in the catalogue") as caught:
        lookup("titan-rtz")
    assert caught.value.exit_code == 2
    nearest = caught.value.remedy.removeprefix("The nearest names are ").rstrip(".").split(", ")
    assert nearest[0] == "titan-rtx"
    assert all(find(name) is not None for name in nearest)


def test_a_name_like_no_other_is_answered_with_the_whole_list():
    with pytest.raises(UsageError, match=r"titan-rtx.*b200"):
        lookup("!?")
