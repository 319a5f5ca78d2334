from typing import Literal, Self

import pytest
from pydantic import Field, model_validator

from rigfit.config_keys import list_keys
from rigfit.errors import UsageError
from rigfit.overrides import build_workload, parse_overrides, read_yaml, resolve_aliases
from rigfit.workload import RUN_WIDE_KEYS, Recipe, WorkloadConfig


class ToyConfig(WorkloadConfig):
    img_size: int = Field(64, ge=16, description="pixels")
    patch_size: int = Field(16, ge=1)
    widths: tuple[int, ...] = (8, 8)
    loss: Literal["mse", "l1"] = "mse"

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not divisible by {self.patch_size}: use img_size 64 or 80")
        return self


TOY = Recipe(name="toy", summary="", config=ToyConfig, task_module="none", data_module="none")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-0.1", -0.1),
        ("64", 64),
        ("+7", 7),
        ("010", 10),  # YAML 1.1 reads 8
        ("0o10", 8),
        ("0x10", 16),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("12:30", "12:30"),  # YAML 1.1 reads 750
        ("2026-11-20", "2026-11-20"),  # YAML 1.1 reads a date
        ("1_000", "1_000"),
        ("e5", "e5"),
        ('"3e-5"', "3e-5"),
        ("'64'", "64"),
        ("a: b #c", "a: b #c"),
        ("*.png", "*.png"),
        (r"C:\tiles", r"C:\tiles"),
        ("[1, 2e-1, on]", [1, 0.2, "on"]),
        ("[{img_size: 256, epochs: 30}]", [{"img_size": 256, "epochs": 30}]),
        ("{a: null}", {"a": None}),
    ],
)
def test_values_follow_yaml_1_2(text, value, tmp_path):
    (parsed,) = parse_overrides([f"key={text}"]).values()
    assert (parsed, type(parsed)) == (value, type(value))
    if not {":", "*"} & set(text) or text[:1] in "[{":  # a file needs quotes around those
        file = tmp_path / "config.yaml"
        file.write_text(f"key: {text}\n", encoding="utf-8")
        assert read_yaml(file) == {"key": value}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["img_size=256"], {"img_size": 256}),
        (["--img-size", "256"], {"img_size": 256}),
        (["--img_size=256"], {"img_size": 256}),
        (["img-size=256"], {"img_size": 256}),
        (["--deterministic", "--lr", "1e-3"], {"deterministic": True, "lr": 1e-3}),
        (["--deterministic", "lr=1e-3"], {"deterministic": True, "lr": 1e-3}),
        (["--deterministic"], {"deterministic": True}),
        (["--deterministic", "false"], {"deterministic": False}),
        (["--shift", "-3"], {"shift": -3}),
        (["lr=1", "lr=2"], {"lr": 2}),
        (["data=a=b"], {"data": "a=b"}),
        ([], {}),
    ],
)
def test_words_may_be_assignments_or_options(words, values):
    assert parse_overrides(words) == values


@pytest.mark.parametrize("word", ["256", "-x", "=3", "img size=3", "--"])
def test_a_word_that_is_neither_is_refused(word):
    with pytest.raises(UsageError, match=r"neither key=value nor an option.*\nWrite key=value"):
        parse_overrides([word])
    assert parse_overrides(["img_size=256"])


@pytest.mark.parametrize(
    "word", ["stages=[{img_size: 256}", "name='open", "lr=[1,", "k={a: 1, a: 2}", "k=" + "[" * 5000]
)
def test_a_value_that_cannot_be_read_is_refused(word):
    with pytest.raises(UsageError, match=r"cannot be read: .*\nWrite lists as"):
        parse_overrides([word])


def test_a_value_never_makes_an_object():
    assert parse_overrides(["a=!!python/object:x"]) == {"a": "!!python/object:x"}
    with pytest.raises(UsageError, match=r"could not determine a constructor"):
        parse_overrides(["a=[!!python/object/apply:os.getcwd []]"])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"a: 1\nb: [1, 2\n", r"line 3 is not readable YAML"),
        (b"a: 1\n\tb: 2\n", r"line 2 is not readable YAML"),
        (b"# list\n\n- 1\n- 2\n", r"line 3: a list stands where"),
        (b"just text\n", r"line 1: one value stands where"),
        (b"a: 1\na: 2\n", r"line 2 is not readable YAML: `a` is there twice"),
        (b"1: 2\n", r"line 1 is not readable YAML: the key 1 is not text"),
        (b"a: !!python/object/apply:os.system [ls]\n", r"line 1 is not readable YAML"),
        (b"\xff\xfe\x00", r"is not text"),
        (b"a: \x07\n", r"is not readable YAML"),
        (b"[" * 5000, r"c.yaml"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_line(content, cause, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=cause) as caught:
        read_yaml(file)
    assert caught.value.remedy
    assert "\n" not in caught.value.cause


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"There is no file .*absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match=r"cannot be read"):
        read_yaml(tmp_path)


def test_an_empty_file_gives_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "c.yaml") == {}


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({"per_device_train_batch_size": 8}, {"micro_batch_size": 8}),
        ({"batch": 64}, {"effective_batch_size": 64}),
        ({"imgsz": 256}, {"img_size": 256}),
        ({"learning_rate": 1e-3}, {"lr": 1e-3}),
        ({"bf16": True}, {"precision": "bf16"}),
        ({"bf16": False, "fp16": True}, {"precision": "fp16"}),
        ({"bf16": False}, {"precision": "fp32"}),
        ({"precision": "16-mixed"}, {"precision": "fp16"}),
        ({"precision": "bf16-mixed"}, {"precision": "bf16"}),
        ({"precision": "32-true"}, {"precision": "fp32"}),
        ({"precision": 32}, {"precision": "fp32"}),
        ({"workers": 2}, {"num_workers": 2}),
        ({"output_dir": "x"}, {"out": "x"}),
        ({"data_root": "x"}, {"data": "x"}),
        ({"stages": [{"imgsz": 32}]}, {"stages": [{"img_size": 32}]}),
    ],
)
def test_familiar_names_are_accepted_with_a_hint(given, resolved):
    values, hints = resolve_aliases(given, ToyConfig)
    assert values == resolved
    assert len(hints) == 1
    build_workload(TOY, values)


def test_names_used_here_need_no_hint():
    values = {"img_size": 32, "precision": "bf16", "stages": [{"lr": 1.0}]}
    assert resolve_aliases(values, ToyConfig) == (values, [])


def test_a_recipe_that_has_the_name_itself_keeps_it():
    class Own(WorkloadConfig):
        batch: int = 1

    assert resolve_aliases({"batch": 2}, Own) == ({"batch": 2}, [])


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"batch": 2, "effective_batch_size": 4}, "batch and effective_batch_size both set effective_batch_size"),
        ({"imgsz": 2, "image_size": 4}, "imgsz and image_size both set img_size"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both true"),
        ({"bf16": True, "precision": "bf16"}, "precision and bf16 are both given"),
        ({"bf16": "auto"}, "bf16 is 'auto'"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is not set but derived"),
        ({"stages": [{"gradient_accumulation_steps": 4}]}, "gradient_accumulation_steps is not set but derived"),
    ],
)
def test_names_that_clash_are_refused(given, cause):
    with pytest.raises(UsageError, match=cause) as caught:
        resolve_aliases(given, ToyConfig)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("values", "cause", "remedy", "way_out"),
    [
        ({"img_sise": 64}, "toy has no key `img_sise`", "Did you mean `img_size`", {"img_size": 64}),
        ({"learning_rat": 1.0}, "toy has no key `learning_rat`", "Did you mean `lr`", {"lr": 1.0}),
        ({"zzz": 1}, "toy has no key `zzz`", "rigfit recipes show toy", {}),
        ({"lr": "3e-5"}, 'lr is the text "3e-5", in quotes; expected: number, above 0, or null', "Write lr=3e-5, without quotes", {"lr": 3e-5}),
        ({"img_size": "64"}, 'img_size is the text "64", in quotes', "Write img_size=64, without", {"img_size": 64}),
        ({"img_size": 64.5}, "img_size is 64.5 .*expected: whole number, at least 16", "img_size=64", {"img_size": 64}),
        ({"img_size": "big"}, r'img_size is "big" \(text\)', "img_size=64", {"img_size": 64}),
        ({"img_size": 3}, r"img_size is 3 \(a whole number\); expected: whole number, at least 16", "img_size=64", {}),
        ({"img_size": None}, r"img_size is null \(nothing\)", "img_size=64", {}),
        ({"deterministic": "yes"}, "expected: true or false", "deterministic=false", {"deterministic": False}),
        ({"deterministic": 1}, "deterministic is 1", "deterministic=false", {}),
        ({"img_size": True}, "img_size is true", "img_size=64", {}),
        ({"loss": "l2"}, r"expected: mse \| l1", "loss=mse", {"loss": "mse"}),
        ({"precision": "fp8"}, r"expected: fp32 \| bf16 \| fp16, or null", "recipes show", {"precision": "fp16"}),
        ({"widths": [1, "a"]}, r"widths is \[1, \"a\"\] \(a list\); expected: list of whole numbers", r"widths=\[8, 8\]", {"widths": [8, 8]}),
        ({"lr": float("inf")}, "lr=inf is not a finite number", "finite", {"lr": 1.0}),
        ({"name": 5}, r"name is 5 \(a whole number\); expected: text or null", "recipes show", {"name": "5"}),
        ({"img_size": 70}, "img_size 70 is not divisible by 16", "Use img_size 64 or 80", {"img_size": 80}),
        ({"stages": {"img_size": 64}}, "stages is", r"Write stages=\[", {}),
        ({"stages": [3]}, "stages is", r"Write stages=\[", {}),
        ({"stages": [{"img_sise": 64}]}, "stage 1: toy has no key `img_sise`", "Did you mean `img_size`", {}),
        ({"stages": [{}, {"img_size": "64"}]}, 'stage 2: img_size is the text "64"', "without quotes", {}),
    ],
)  # fmt: skip
def test_a_wrong_value_names_the_key_what_was_given_and_what_is_expected(values, cause, remedy, way_out):
    with pytest.raises(UsageError, match=cause) as caught:
        build_workload(TOY, values)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.cause
    with pytest.raises(UsageError, match=remedy):
        raise UsageError(caught.value.remedy)
    build_workload(TOY, way_out)


@pytest.mark.parametrize("key", sorted(RUN_WIDE_KEYS))
def test_a_stage_cannot_change_what_the_whole_run_shares(key):
    with pytest.raises(UsageError, match=rf"stage 1: {key} belongs to the whole run"):
        build_workload(TOY, {"stages": [{key: None}]})


def test_without_stages_the_one_stage_is_the_config():
    workload = build_workload(TOY, {"lr": 1})
    assert workload.stage_configs == (workload.config,)
    assert workload.config.lr == 1.0


def test_each_stage_is_the_config_with_its_overrides():
    workload = build_workload(TOY, {"epochs": 5, "stages": [{"img_size": 32}, {"img_size": 128, "epochs": 2}]})
    assert [(stage.img_size, stage.epochs, stage.stages) for stage in workload.stage_configs] == [
        (32, 5, ()),
        (128, 2, ()),
    ]
    assert workload.config.img_size == 64
    assert len(workload.config.stages) == 2


def test_lists_become_tuples_and_paths_become_text(tmp_path):
    config = build_workload(TOY, {"widths": [1, 2], "data": tmp_path}).config
    assert (config.widths, config.data) == ((1, 2), str(tmp_path))


def test_a_python_object_is_no_value():
    with pytest.raises(UsageError, match=r"A value is a object"):
        build_workload(TOY, {"data": object()})


def test_keys_are_told_in_words_with_the_recipes_own_first():
    keys = {key.name: key for key in list_keys(ToyConfig)}
    assert set(keys) == set(ToyConfig.model_fields)
    assert next(iter(keys)) == "img_size"
    assert (keys["img_size"].kind, keys["img_size"].default) == ("whole number, at least 16", "64")
    assert (keys["lr"].kind, keys["lr"].default) == ("number, above 0, or null", "null")
    assert keys["warmup_fraction"].kind == "number, at least 0 and below 1"
    assert keys["stages"].kind == "list of mappings"


def test_the_first_stage_has_no_schedule_to_continue() -> None:
    with pytest.raises(UsageError, match="there is none before the first") as refused:
        build_workload(TOY, {"stages": [{"continues_schedule": True}, {}]})
    assert "Write it inside a later stage" in refused.value.remedy
    later = build_workload(TOY, {"stages": [{}, {"continues_schedule": True}]})
    assert [config.continues_schedule for config in later.stage_configs] == [False, True]


def test_a_stage_that_may_stop_early_has_no_schedule_to_go_on_along() -> None:
    stages = [{"early_stopping_patience": 2}, {"continues_schedule": True}]
    with pytest.raises(UsageError, match="Stage 1 may stop early"):
        build_workload(TOY, {"stages": stages})
    build_workload(TOY, {"stages": [{}, {"continues_schedule": True, "early_stopping_patience": 2}]})
