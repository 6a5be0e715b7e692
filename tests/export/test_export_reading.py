"""Folders that are no export, or a damaged one, are refused by name before anything is built."""

import json
import shutil

import pytest

from medclip_jax.export.folder import write_folder
from medclip_jax.parameters import flatten
from medclip_jax.weights.exported import is_export, read_folder
from tests.export.twins import assert_same_params, made


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """An export to copy and to damage."""
    return write_folder(made(tokenizer), tmp_path_factory.mktemp("whole") / "out")


class TestReading:
    def test_no_export(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config\.json.*medclip export"):
            read_folder(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match="not of an exported model"):
            read_folder(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "medclip"}')
        with pytest.raises(FileNotFoundError, match="holds none of model"):
            read_folder(tmp_path)
        (tmp_path / "config.json").write_text("{")
        assert not is_export(tmp_path)
        with pytest.raises(ValueError, match="damaged"):
            read_folder(tmp_path)

    def test_a_folder_of_an_earlier_version(self, whole, tmp_path):
        """Keys that came later have defaults that keep what was before them."""
        out = shutil.copytree(whole, tmp_path / "out")
        config = json.loads((out / "config.json").read_text())
        for name in ("kind", "extremes", "peaks", "skip"):
            del config["objective"]["vision"][name]
        (out / "config.json").write_text(json.dumps(config))
        found, expected = read_folder(out), read_folder(whole)
        assert_same_params(flatten(found.params), flatten(expected.params))
        assert type(found.objective().vision.encoder).__name__ == "VisionTransformer"

    def test_weights_of_another_config(self, tokenizer, tmp_path):
        write_folder(made(tokenizer), tmp_path / "out")
        file = tmp_path / "out" / "config.json"
        config = json.loads(file.read_text())
        config["objective"]["vision"]["depth"] = 3
        config["objective"]["embedding_width"] = 11
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"vision\.depth is 3, not 2, as in the weights"):
            read_folder(tmp_path / "out")
        config["objective"]["vision"]["depth"] = 2
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"text_projection\.linear\.weight has shape"):
            read_folder(tmp_path / "out")

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            ("objective.vision.heads", 0, r"vision\.heads is 0, not a whole number of 1 or more"),
            ("objective.text.heads", 5, r"text\.heads is 5, not a divisor"),
            ("objective.vision.depth", 2_000_000, r"vision\.depth is 2000000, not 2"),
            ("objective.vision.width", 240_000_000, r"vision\.width is 240000000, not"),
            ("objective.vision.width", "24", r'vision\.width is "24", not a whole number'),
            ("objective.vision.mlp_ratio", -4.0, r"mlp_ratio is -4\.0, not 0 or more"),
            ("objective.vision.layer_norm_epsilon", float("nan"), r"layer_norm_epsilon is NaN, not a number"),
            ("objective.vision.patch", [0, 8, 8], r"patch is \[0, 8, 8\], not three sizes"),
            ("objective.vision.windows", [[300, -300]], r"windows is \[\[300, -300\]\], not"),
            ("objective.vision.pooling", "max", "pooling='max' is unknown"),
            ("objective.vision.dtype", "float99", "float99"),
            ("objective.vision", [], r"vision is \[\], not a dict"),
            ("objective.name", "clap", r'name is "clap", not mae or clip'),
            ("objective.new", 1, r"objective\.new is unknown here"),
            ("objective.text.max_positions", 10**14, r"positions"),
            ("data.shape", [-8, 16, 16], r"shape is \[-8, 16, 16\], not three sizes"),
            ("data.shape", [80000, 16000, 16000], "fewer than"),
            ("data.shape", [8, 16], "list of three numbers"),
            ("data.spacing", [8.0, 0.0, 6.0], "three distances in mm"),
            ("data.vocabulary_size", -1, "vocabulary_size is -1"),
            ("data.extra", 1, "unknown entry"),
            ("data", None, "data is null, not a dict"),
            ("modality", "PET", 'modality is "PET", not CT or MR'),
            ("text_length", 0, "text_length is 0"),
            ("prompts", {"cardiomegaly": ["one"]}, r"prompts\.cardiomegaly"),
        ],
    )
    def test_a_damaged_entry_is_named_before_anything_is_built(self, whole, tmp_path, place, value, message):
        out = shutil.copytree(whole, tmp_path / "out")
        config = json.loads((out / "config.json").read_text())
        *parents, last = place.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message) as caught:
            read_folder(out)
        assert "config.json is damaged or does not fit" in str(caught.value) or "has shape" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)

    def test_the_grid_is_written_twice(self, whole, tmp_path):
        """Nothing in the weights tells another shape of patches with fixed positions."""
        out = shutil.copytree(whole, tmp_path / "out")
        config = json.loads((out / "config.json").read_text())
        config["data"]["shape"][0] *= 2
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"shape is .* here, .* in preprocessor_config\.json"):
            read_folder(out)

    @pytest.mark.parametrize("content", ['{"a":' * 100_000, "[]", "", '"medclip"', b"\xff\xfe{}"])
    def test_files_that_are_no_object(self, whole, tmp_path, content):
        import medclip_jax

        out = shutil.copytree(whole, tmp_path / "out")
        content = content if isinstance(content, bytes) else content.encode()
        (out / "config.json").write_bytes(content)
        assert not is_export(out)
        for read in (read_folder, medclip_jax.load):
            with pytest.raises(ValueError, match=r"config\.json is damaged \("):
                read(out)

    def test_damaged_weights(self, whole, tmp_path):
        out = shutil.copytree(whole, tmp_path / "out")
        file = out / "model.safetensors"
        good = file.read_bytes()
        size = int.from_bytes(good[:8], "little")
        header = good[8 : 8 + size]
        offsets = header.replace(b'"data_offsets":[0', b'"data_offsets":[8')
        for bad in (
            good[:-10],
            good[:100],
            b"",
            (2**60).to_bytes(8, "little") + good[8:],
            good[:8] + b"{" * size + good[8 + size :],
            good[:8] + offsets + good[8 + size :],
            good[:8] + header.replace(b'"F32"', b'"F99"') + good[8 + size :],
        ):
            file.write_bytes(bad)
            with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
                read_folder(out)
