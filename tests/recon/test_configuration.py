import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import ClassVar

import pytest

from cartesian_recon import CartesianConfig
from recon.configuration import PROJECT_FOLDER, ConfigurationError, declared, from_mapping, load, parameter
from rtspiral_bart_tvrecon import TfdConfig
from rtspiral_live_tvrecon import LiveConfig
from simplenufft1arm import ViewSharingConfig
from spiral_xdgrasp_recon import XdConfig

CONFIGS = [CartesianConfig, ViewSharingConfig, LiveConfig, TfdConfig, XdConfig]


def read(tmp_path, text, cls=ViewSharingConfig, name="config.toml"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return load(cls, file)


def error_of(tmp_path, text, cls=ViewSharingConfig, name="config.toml"):
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text, cls, name)
    assert str(tmp_path / name) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cls", CONFIGS)
def test_shipped_file_holds_every_key_with_its_default_and_a_comment(cls):
    assert load(cls) == from_mapping(cls, {}, "nothing")
    text = (PROJECT_FOLDER / cls.FILE).read_text()
    values = tomllib.loads(text)
    tables = {"": {key: value for key, value in values.items() if not isinstance(value, dict)}}
    tables |= {key: value for key, value in values.items() if isinstance(value, dict)}
    in_file = {f"{table}.{key}" if table else key for table, keys in tables.items() for key in keys}
    assert in_file == {one.key for one in declared(cls)}
    lines = text.splitlines()
    for one in declared(cls):
        (row,) = (i for i, line in enumerate(lines) if re.match(rf"{one.name}\s*=", line))
        assert lines[row - 1].startswith("# "), f"{one.name} has no comment"


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_declaration_describes_itself_and_accepts_its_default(cls):
    for one in declared(cls):
        assert one.parameter.description.endswith(".")
        assert one.allowed


def test_file_with_some_quoted_keys_of_an_existing_user(tmp_path):
    config = read(
        tmp_path,
        '"metafile_paths" = ["/data/meta", "~/meta", "meta"] # where\n[reconstruction]\n"apply_girf" = true\n'
        '"gpu_device"\t= 2\n"coil_combine" = "rssq"\n"fov_oversampling" = 2\n',
    )
    assert config.metafile_paths == (Path("/data/meta"), Path.home() / "meta", PROJECT_FOLDER / "meta")
    reconstruction = config.reconstruction
    assert (reconstruction.apply_girf, reconstruction.gpu_device, reconstruction.coil_combine) == (True, 2, "rssq")
    assert reconstruction.fov_oversampling == 2
    assert isinstance(reconstruction.fov_oversampling, float)
    assert (reconstruction.arms_per_frame, reconstruction.window_shift) == (55, 17)


def test_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViewSharingConfig().reconstruction.arms_per_frame = 3


def test_the_file_is_read_at_each_load(tmp_path):
    assert read(tmp_path, "[reconstruction]\narms_per_frame = 3").reconstruction.arms_per_frame == 3
    assert read(tmp_path, "[reconstruction]\narms_per_frame = 4").reconstruction.arms_per_frame == 4


def test_empty_path_is_none_and_others_are_absolute(tmp_path):
    config = read(tmp_path, '[reconstruction]\ngirf_file = ""\nBART_TOOLBOX_PATH = "~/bart"', TfdConfig)
    assert config.reconstruction.girf_file is None
    folder = config.reconstruction.BART_TOOLBOX_PATH
    assert folder == Path.home() / "bart"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("arms_per_frame = true", "reconstruction.arms_per_frame = True: must be a whole number from 1 to 1000000"),
        ("arms_per_frame = 55.0", "a whole number"),
        ("arms_per_frame = 0", "arms_per_frame = 0: must be a whole number from 1 to 1000000"),
        ('arms_per_frame = "55"', "arms_per_frame = '55'"),
        ("apply_girf = 1", "apply_girf = 1: must be true or false"),
        ('apply_girf = "true"', "must be true or false"),
        ("gpu_device = -2", "at least -1"),
        ("fov_oversampling = nan", "from 0.5 to 8"),
        ("fov_oversampling = inf", "from 0.5 to 8"),
        ("fov_oversampling = true", "must be a number from 0.5 to 8"),
        ("fov_oversampling = 1" + 400 * "0", "from 0.5 to 8"),
        ('coil_combine = "Adaptive"', 'coil_combine = \'Adaptive\': must be one of "adaptive", "rssq"'),
        ("girf_file = 3", "must be a path in quotes"),
    ],
)
def test_wrong_value_names_file_key_value_and_what_is_allowed(tmp_path, line, told):
    assert told in error_of(tmp_path, f"[reconstruction]\n{line}\n")


@pytest.mark.parametrize("address", ["", "tcp://host:8786", "tls://[::1]:8786", "tcp://127.0.0.1:1"])
def test_the_address_of_a_scheduler(tmp_path, address):
    config = read(tmp_path, f'[reconstruction]\nscheduler = "{address}"', TfdConfig)
    assert config.reconstruction.scheduler == address


@pytest.mark.parametrize("value", ['"host:8786"', '"host"', '"tcp://"', '"tcp://a host"', '"://host"', "8786"])
def test_no_address_of_a_scheduler(tmp_path, value):
    told = error_of(tmp_path, f"[reconstruction]\nscheduler = {value}\n", TfdConfig)
    assert "reconstruction.scheduler = " in told
    assert 'must be empty, or such as "tcp://host:8786"' in told


@pytest.mark.parametrize("value", ['"seq_meta"', "[]", "[1]", '[""]'])
def test_metafile_paths_must_be_a_list_of_folders(tmp_path, value):
    assert "metafile_paths" in error_of(tmp_path, f"metafile_paths = {value}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[reconstruction]\narm_per_frame = 3", "reconstruction.arm_per_frame: unknown key; did you mean arms_per_fra"),
        ("[reconstruction]\nnonsense = 3", "Known here: concomitant, field_map"),
        ('[reconstruction]\nmetafile_paths = ["a"]', "belongs at the top of the file, before the first table"),
        ("arms_per_frame = 3", "arms_per_frame: this key belongs in the table [reconstruction]"),
        ("[binning]\nresp_discard = 0.1", "binning: unknown key"),
        ("reconstruction = 3", "must be a table, [reconstruction]"),
    ],
)
def test_unknown_key_names_the_nearest_or_its_place(tmp_path, text, told):
    assert told in error_of(tmp_path, text)


def test_all_problems_are_told_at_once(tmp_path):
    told = error_of(
        tmp_path, '[reconstruction]\nnum_itr = 1\n[binning]\ntrigger_source = "PT"\nresp_discard = 1', XdConfig
    )
    assert "num_itr" in told
    assert '"ecg", "pilottone", "pilottone_derivative"' in told
    assert "binning.resp_discard = 1: must be a number from 0 to 0.9" in told


def test_missing_file_is_named_with_its_place():
    with pytest.raises(ConfigurationError, match=re.escape(str(PROJECT_FOLDER / "configs/absent.toml"))):
        load(ViewSharingConfig, "configs/absent.toml")


def test_syntax_error_names_the_line(tmp_path):
    assert "line 3" in error_of(tmp_path, "[reconstruction]\napply_girf = true\narms_per_frame 3\n")
    assert "line 2" in error_of(tmp_path, '{"reconstruction":\n {"apply_girf": tru}}', name="config.json")
    assert "single quotes" in error_of(tmp_path, '[reconstruction]\ngirf_file = "C:\\girf.mat"\n')


def test_other_text_than_utf8_and_other_json_than_an_object(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"# r\xe9glage\n")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load(ViewSharingConfig, tmp_path / "latin.toml")
    assert "holds list" in error_of(tmp_path, "[1]", name="config.json")
    with pytest.raises(ConfigurationError, match="cannot read"):
        load(ViewSharingConfig, tmp_path)


def test_windows_editors_byte_order_mark_and_line_ends(tmp_path):
    (tmp_path / "win.toml").write_bytes(b"\xef\xbb\xbf[reconstruction]\r\narms_per_frame = 9\r\n")
    assert load(ViewSharingConfig, tmp_path / "win.toml").reconstruction.arms_per_frame == 9


def test_json_reads_like_toml(tmp_path):
    values = {"reconstruction": {"num_iter": 7, "reg_lambda_resp": 0}, "binning": {"n_cardiac_bins": 8}}
    config = read(tmp_path, json.dumps(values), XdConfig, "config.json")
    assert (config.reconstruction.num_iter, config.binning.n_cardiac_bins) == (7, 8)
    assert config.reconstruction.reg_lambda_resp == 0


def test_a_module_declares_its_own_parameters():
    @dataclasses.dataclass(frozen=True)
    class Filter:
        FILE: ClassVar[str] = "filter.json"
        window: int = parameter(3, "Size of the window.", "pixels", minimum=1, maximum=15)

    (one,) = declared(Filter)
    assert (one.key, one.kind, one.default, one.parameter.unit) == ("window", int, 3, "pixels")
    assert from_mapping(Filter, {"window": 5}, "the client's parameters").window == 5
    with pytest.raises(ConfigurationError, match=r"the client's parameters: window = 16: .* from 1 to 15 \[pixels\]"):
        from_mapping(Filter, {"window": 16}, "the client's parameters")
