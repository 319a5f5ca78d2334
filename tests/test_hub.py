"""Weights that are not here: what is told can be typed, for any recipe that takes weights by name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from rigfit.errors import UsageError
from rigfit.hub import cached_file, fetching
from rigfit.recipes.ocr.architecture import missing_model
from rigfit.recipes.segmentation.backbone import find_weights
from rigfit.recipes.vqa.sources import find_source


def told_by_ocr(name: str) -> Path:
    raise missing_model(name)


@pytest.mark.parametrize(("find", "key"), [(told_by_ocr, "model"), (find_weights, "weights"), (find_source, "weights")])
def test_the_line_that_fetches_weights_names_those_that_were_asked_for(find: Callable[[str], Path], key: str) -> None:
    with pytest.raises(UsageError) as caught:
        find("nobody/has-this.v1")
    (line,) = re.findall(r"`(hf .+?)`", caught.value.remedy)
    assert shlex.split(line) == ["hf", "download", "nobody/has-this.v1", "--local-dir", "FOLDER"]
    assert f"{key}=FOLDER" in caught.value.remedy


@pytest.mark.parametrize("path", ["/models/trocr", "~/trocr", "./trocr", "a/b/c", "my weights"])
def test_for_a_folder_that_is_not_there_the_published_weights_are_named(path: str) -> None:
    assert "hf download someone/published --local-dir" in fetching(path, published="someone/published", key="model")


def test_a_name_that_no_repository_could_have_is_not_in_the_cache() -> None:
    assert cached_file("a/b/c/d", "config.json") is None
