"""A checkpoint with the published names, against a PyTorch twin written from the description."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import nn

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.export.parity import load_torch
from medclip_jax.export.released_cmr_clip import SERIES, convert_release, import_release
from medclip_jax.models.bert import BertConfig
from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece
from tests.export.twins import compiled
from tests.made_frames import beating, write_nifti
from tests.models.spacetime_twin import SpaceTime

WIDTH, FRAMES, SIDE, PATCH, EMBEDDING = 128, 5, 3, 4, 20
BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
}


class Twin(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.text_model = transformers.BertModel(transformers.BertConfig(vocab_size=vocabulary, **BERT))
        self.video_model = SpaceTime(
            places=SIDE**2,
            patch=PATCH,
            channels=3,
            width=WIDTH,
            depth=2,
            heads=WIDTH // 64,
            hidden=4 * WIDTH,
            frames=FRAMES,
        )
        self.txt_proj = nn.Sequential(nn.ReLU(), nn.Linear(BERT["hidden_size"], EMBEDDING))
        self.vid_proj = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, EMBEDDING))
        for parameter in self.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)

    @torch.no_grad()
    def studies(self, frames):
        """Gray frames (B, T, H, W) in [0, 1]."""
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, None, :, None, None]
        return F.normalize(self.vid_proj(self.video_model((frames[:, :, None] - mean) / std)[:, 0]), dim=-1)

    @torch.no_grad()
    def texts(self, ids):
        real = (ids != 0).float()
        states = self.text_model(ids, attention_mask=real).last_hidden_state
        return F.normalize(self.txt_proj((states * real[..., None]).sum(1) / real.sum(1)[:, None]), dim=-1)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    texts = ["left ventricle is dilated.", "there is septal hypertrophy.", "the aortic root is ectatic."] * 3
    tokenizer = train_wordpiece(texts, folder, 120)
    (folder / "config.json").write_text(json.dumps({"vocab_size": tokenizer.vocabulary_size + 3, **BERT}))
    return folder


@pytest.fixture(scope="module")
def twin(text_encoder):
    torch.manual_seed(0)
    return Twin(json.loads((text_encoder / "config.json").read_text())["vocab_size"]).eval()


def frames_of(count=2):
    """(B, T, H, W) int16, as prepared."""
    shape = (count, FRAMES, SIDE * PATCH, SIDE * PATCH)
    return np.random.default_rng(0).integers(0, 4096, shape).astype(np.int16)


def embed(objective, frames):
    shape = frames.shape[:2]
    inputs = {"frames": frames, "view": np.zeros(shape, np.int32), "frame_valid": np.ones(shape, np.int8)}
    return objective.embed_volumes(inputs).mean


@pytest.mark.parametrize("form", ["bin", "training", "safetensors"])
def test_studies_and_texts(twin, text_encoder, tmp_path, form):
    """Through the folder, as a user has it, from each form of the file."""
    given = twin.state_dict()
    file = tmp_path / {"bin": "pytorch_model.bin", "training": "best.pth"}.get(form, "model.safetensors")
    if form == "safetensors":
        save_file(given, file)
    elif form == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": x for name, x in given.items()}}, file)
    else:
        torch.save(given, file)
    arguments = ["--checkpoint", file, "--text-encoder", text_encoder, "--out", tmp_path / "out"]
    assert main(["import", "--format", "cmr_clip", *map(str, arguments)]) == 0
    model = medclip_jax.load(tmp_path / "out", progress=False)
    frames = frames_of()
    expected = twin.studies(torch.tensor(frames).float() / 4095)
    np.testing.assert_allclose(compiled(model.objective, embed, frames), expected, atol=1e-5)
    tokens = model.tokenizer(["Left ventricle is dilated.", "the root"], 40)
    expected = twin.texts(torch.tensor(tokens.astype(np.int64)))
    texts = compiled(model.objective, lambda o, t: o.embed_texts(t).mean, tokens)
    np.testing.assert_allclose(texts, expected, atol=1e-5)
    assert model.spec.views == SERIES
    assert model.config["data"]["frames"] == FRAMES
    assert model.modality == "MR"


def test_in_pytorch(twin, text_encoder, tmp_path):
    """The exported torch model on a study of its series."""
    torch.save(twin.state_dict(), tmp_path / "pytorch_model.bin")
    release = import_release(tmp_path / "pytorch_model.bin", text_encoder, tmp_path / "out")
    assert [name for name in release.left_out if not name.startswith("text_model.pooler.")] == []
    assert len(release.left_out) == 2
    frames = frames_of(1)
    study = {"lge_sa": frames[0, 3:], "cine_lax": frames[0, :3]}
    found = load_torch(tmp_path / "out").embed_volumes(study).mean
    np.testing.assert_allclose(found, twin.studies(torch.tensor(frames).float() / 4095), atol=1e-5)
    assert "cine_lax, cine_sa, lge_sa" in (tmp_path / "out" / "README.md").read_text()


class TestRefusals:
    def converted(self, state, text_encoder):
        arrays = {name: x.numpy() for name, x in state.items()}
        return convert_release(arrays, BertConfig.from_hf(text_encoder), load_tokenizer(text_encoder))

    @pytest.mark.parametrize(
        ("lost", "message"),
        [
            ("vid_proj.1.weight", r"no whole CMR-CLIP checkpoint: it lacks vid_proj\.1\.weight"),
            ("video_model.temporal_embed", r"it lacks video_model\.temporal_embed"),
            ("video_model.blocks.1.norm3.bias", r"lacks video_model\.blocks\.1\.norm3\.bias: a part"),
            ("text_model.encoder.layer.1.output.dense.bias", r"Missing: encoder\.layer\.1\.output\.dense"),
        ],
    )
    def test_a_missing_part_is_named(self, twin, text_encoder, lost, message):
        state = dict(twin.state_dict())
        del state[lost]
        with pytest.raises(ValueError, match=message):
            self.converted(state, text_encoder)

    def test_other_patches_and_grids(self, twin, text_encoder):
        state = dict(twin.state_dict())
        kernel = "video_model.patch_embed.proj.weight"
        with pytest.raises(ValueError, match="not of frames in three colors"):
            self.converted(state | {kernel: state[kernel][:, :1]}, text_encoder)
        table = "video_model.pos_embed"
        with pytest.raises(ValueError, match="positions of 8 patches, which are no square"):
            self.converted(state | {table: state[table][:, :9]}, text_encoder)

    def test_a_pickle_of_more_than_tensors_is_not_opened(self, text_encoder, tmp_path):
        torch.save({"state_dict": {}, "config": object}, tmp_path / "best.pth")
        with pytest.raises(ValueError, match="cannot be read safely"):
            import_release(tmp_path / "best.pth", text_encoder, tmp_path / "out")

    def test_options_of_another_format(self, text_encoder, tmp_path, capsys):
        arguments = ["--checkpoint", "x.bin", "--text-encoder", text_encoder, "--out", tmp_path / "out"]
        given = [*map(str, arguments), "--orientation", "SPL"]
        assert main(["import", "--format", "cmr_clip", *given]) == 2
        assert "--orientation: of --format cardiac_clip; of cmr_clip all is known" in capsys.readouterr().err


def test_a_study_as_its_files_lie(twin, text_encoder, tmp_path):
    """The imported folder embeds studies: complete pictures, of cines the middle slice."""
    torch.save(twin.state_dict(), tmp_path / "pytorch_model.bin")
    import_release(tmp_path / "pytorch_model.bin", text_encoder, tmp_path / "out")
    model = medclip_jax.load(tmp_path / "out", progress=False)
    (tmp_path / "study").mkdir()
    write_nifti(tmp_path / "study" / "cine_sa.nii.gz", beating(slices=3, phases=5))
    prepared = model.prepare_study(tmp_path / "study")
    assert prepared["frame_valid"].sum() == min(FRAMES, 5)
    assert set(prepared["view"]) <= {SERIES.index("cine_sa"), -1}
    assert np.isfinite(model.embed_volumes(tmp_path / "study")).all()
