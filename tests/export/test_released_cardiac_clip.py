"""A checkpoint with the published names and shapes, against a PyTorch twin of what its code computes."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.export.released_cardiac_clip import Choices, convert_release, import_release
from medclip_jax.models.bert import BertConfig
from medclip_jax.parameters import flatten, split
from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece
from medclip_jax.weights.names import to_torch
from tests.export.twins import made_volumes

WIDTH, DEPTH, PATCH, GRID, EMBEDDING = 128, 2, 8, (2, 3, 4), 40
SHAPE = tuple(PATCH * cells for cells in GRID)
LOW, HIGH = -1000.0, 1400.0
CHOICES = Choices(window=(LOW, HIGH), shape=SHAPE, text_length=12)
BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


class QuickGelu(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(WIDTH)
        self.attn = torch.nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.ln_2 = torch.nn.LayerNorm(WIDTH)
        self.mlp = torch.nn.Sequential()
        self.mlp.add_module("c_fc", torch.nn.Linear(WIDTH, 4 * WIDTH))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", torch.nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Visual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.class_embedding = torch.nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = torch.nn.Parameter(torch.zeros(math.prod(GRID) + 1, WIDTH))
        self.conv1 = torch.nn.Conv3d(1, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre = torch.nn.LayerNorm(WIDTH)
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.ln_post = torch.nn.LayerNorm(WIDTH)

    def forward(self, volumes):
        x = self.conv1(volumes[:, None]).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer.resblocks(self.ln_pre(x))[:, 0])


class VisionEncoder(torch.nn.Module):
    """CLIP's text half stands beside the image half, unused but for the temperature."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.token_embedding = torch.nn.Embedding(9, 16)
        self.positional_embedding = torch.nn.Parameter(torch.zeros(7, 16))
        self.ln_final = torch.nn.LayerNorm(16)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))


class Twin(torch.nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.vision_encoder = VisionEncoder()
        self.language_encoder = transformers.BertModel(transformers.BertConfig(vocab_size=vocabulary, **BERT))
        self.multi_modal_vision_proj = torch.nn.Linear(WIDTH, EMBEDDING)
        self.multi_modal_language_proj = torch.nn.Linear(BERT["hidden_size"], EMBEDDING)
        scale = self.vision_encoder.logit_scale.data.clone()
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.vision_encoder.logit_scale.data = scale

    @torch.no_grad()
    def images(self, volumes):
        """Arrays as SimpleITK gives them, scaled by their own extremes."""
        low, high = volumes.amin((1, 2, 3), keepdim=True), volumes.amax((1, 2, 3), keepdim=True)
        return self.multi_modal_vision_proj(self.vision_encoder.visual((volumes - low) / (high - low)))

    @torch.no_grad()
    def texts(self, ids):
        states = self.language_encoder(ids, attention_mask=(ids != 0).long()).last_hidden_state
        return self.multi_modal_language_proj(states[torch.arange(len(ids)), ids.argmax(-1)])


def normalized(vectors):
    return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    texts = ["there is cardiomegaly.", "there is no pericardial effusion.", "the aorta is calcified."] * 3
    tokenizer = train_wordpiece(texts, folder, 120)
    (folder / "config.json").write_text(json.dumps({"vocab_size": tokenizer.vocabulary_size + 3, **BERT}))
    return folder


@pytest.fixture(scope="module")
def twin(text_encoder):
    torch.manual_seed(0)
    return Twin(json.loads((text_encoder / "config.json").read_text())["vocab_size"]).eval()


@pytest.fixture(scope="module")
def checkpoint(twin, tmp_path_factory):
    file = tmp_path_factory.mktemp("release") / "cardiac_clip.ckpt"
    torch.save({"state_dict": twin.state_dict(), "epoch": 9, "pytorch-lightning_version": "2.0.0"}, file)
    return file


@pytest.fixture(scope="module")
def volumes():
    """(2, D, H, W) int16 HU in our order, each with the window's edges as its extremes."""
    drawn = made_volumes(2, SHAPE).clip(int(LOW), int(HIGH))
    drawn[:, 0, 0, 0], drawn[:, 1, 2, 3] = LOW, HIGH
    return drawn


def state_of(twin):
    return {name: x.numpy() for name, x in twin.state_dict().items()}


def converted(twin, text_encoder, choices=CHOICES, state_dict=None):
    return convert_release(
        state_dict or state_of(twin), BertConfig.from_hf(text_encoder), load_tokenizer(text_encoder), choices
    )


def test_images_texts_and_logits(twin, checkpoint, text_encoder, volumes, tmp_path):
    """Through the folder, as a user has it: all three within 1e-5 of what the published code computes."""
    import_release(checkpoint, text_encoder, tmp_path / "out", choices=CHOICES)
    model = medclip_jax.load(tmp_path / "out", progress=False)
    # SimpleITK's array of an ordinary scan grows to superior, posterior, left.
    theirs = torch.tensor(volumes[:, :, ::-1, ::-1].astype(np.float32))
    images = normalized(twin.images(theirs))
    np.testing.assert_allclose(model.embed_volumes(volumes), images, atol=1e-5)
    texts = ["there is cardiomegaly.", "There is no pericardial effusion, the aorta is calcified. The end."]
    ids = torch.tensor(model.tokenizer(texts, 12).astype(np.int64))
    vectors = normalized(twin.texts(ids))
    np.testing.assert_allclose(model.embed_texts(texts), vectors, atol=1e-5)
    logits = math.exp(2.5) * images @ vectors.T
    ours = model.logit_scale * model.embed_volumes(volumes) @ model.embed_texts(texts).T
    np.testing.assert_allclose(ours, logits, atol=1e-5 * math.exp(2.5))
    assert images.std(axis=0).max() > 0.01  # the volumes do differ


@pytest.mark.parametrize(("orientation", "flipped"), [("SAR", ()), ("IPR", (1, 2)), ("SAL", (3,))])
def test_orientation(twin, text_encoder, volumes, orientation, flipped):
    choices = Choices(window=(LOW, HIGH), shape=SHAPE, orientation=orientation)
    release = converted(twin, text_encoder, choices)
    theirs = torch.tensor(np.flip(volumes, flipped).astype(np.float32))
    ours = release.objective.embed_volumes({"volume": jnp.asarray(volumes)}).mean
    np.testing.assert_allclose(ours, normalized(twin.images(theirs)), atol=1e-5)


def test_texts_of_random_ids(twin, text_encoder):
    """The largest id wins, the first of equals; padding neither wins nor is attended."""
    ids = np.random.default_rng(1).integers(5, 40, (4, 12))
    ids[0, 7:] = 0
    ids[1, [3, 8]] = 41
    ours = converted(twin, text_encoder).objective.embed_texts(jnp.asarray(ids, jnp.int32)).mean
    np.testing.assert_allclose(ours, normalized(twin.texts(torch.tensor(ids))), atol=1e-5)


def test_what_is_left_out(twin, text_encoder):
    added = {"mim_head.decoder_norm.weight": np.ones(4, np.float32)}
    release = converted(twin, text_encoder, state_dict=state_of(twin) | added)
    assert sorted(release.left_out) == [
        "language_encoder.pooler.dense.bias",
        "language_encoder.pooler.dense.weight",
        "mim_head.decoder_norm.weight",
        "vision_encoder.ln_final.bias",
        "vision_encoder.ln_final.weight",
        "vision_encoder.positional_embedding",
        "vision_encoder.token_embedding.weight",
    ]


def test_case_is_kept_unless_folded(checkpoint, text_encoder, tmp_path):
    """The published code does not lower the case, for a vocabulary without capitals."""
    unknown = load_tokenizer(text_encoder)(["[UNK]"], 4)[0, 1]
    for lower_case in (False, True):
        choices = Choices(window=(LOW, HIGH), shape=SHAPE, lower_case=lower_case)
        out = tmp_path / str(lower_case)
        import_release(checkpoint, text_encoder, out, choices=choices)
        ids = load_tokenizer(out)(["There is cardiomegaly."], 12)
        assert (ids[0, 1] == unknown) == (not lower_case)
        assert unknown not in ids[0, 2:]
        theirs = transformers.AutoTokenizer.from_pretrained(out)
        assert theirs("There is cardiomegaly.")["input_ids"] == [token for token in ids[0] if token]


def test_command(checkpoint, text_encoder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["import", "--format", "cardiac_clip", "--checkpoint", str(checkpoint)]
    command += ["--text-encoder", str(text_encoder), "--out", str(out)]
    command += ["--shape", *map(str, SHAPE), "--spacing", "2", "3", "3", "--window", "-900", "1200"]
    assert main(command) == 0
    assert "vision_encoder.token_embedding" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["shape"] == list(SHAPE)
    assert config["data"]["spacing"] == [2.0, 3.0, 3.0]
    assert config["objective"]["vision"]["windows"] == [[-900.0, 1200.0]]
    assert config["objective"]["text"]["pooling"] == "highest_id"
    written = "".join(file.read_text() for file in out.iterdir() if file.suffix in (".json", ".md", ".txt"))
    assert str(tmp_path) not in written
    assert str(checkpoint.parent) not in written
    (out / "notes.txt").write_text("mine")
    assert main(command) == 2  # it does not write over what is not its own
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("multi_modal_language_proj.weight", "lacks multi_modal_language_proj.weight"),
        ("vision_encoder.visual.conv1.weight", "no whole Cardiac-CLIP checkpoint"),
        ("vision_encoder.visual.transformer.resblocks.1.ln_2.weight", "lacks blocks/1/mlp_norm"),
        ("language_encoder.encoder.layer.0.output.dense.bias", r"encoder\.layer\.0\.output\.dense\.bias"),
    ],
)
def test_missing_parts_are_named(twin, text_encoder, without, message):
    held = state_of(twin)
    del held[without]
    with pytest.raises(ValueError, match=message):
        converted(twin, text_encoder, state_dict=held)


def test_what_does_not_fit_says_what_to_change(twin, text_encoder, tmp_path):
    with pytest.raises(ValueError, match=r"24 positions.*--shape"):
        converted(twin, text_encoder, Choices(shape=(16, 24, 40)))
    with pytest.raises(ValueError, match="orientation 'LPS' is unknown"):
        Choices(orientation="LPS")
    with pytest.raises(ValueError, match="give the lower HU first"):
        Choices(window=(100.0, -100.0))
    entries = json.loads((text_encoder / "config.json").read_text()) | {"hidden_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="hidden_size to 48"):
        convert_release(state_of(twin), BertConfig.from_hf(tmp_path), load_tokenizer(text_encoder), CHOICES)


def test_state_dict_as_safetensors(twin, text_encoder, tmp_path, volumes):
    """What the error on a pickled Lightning checkpoint tells one to make."""
    file = tmp_path / "cardiac_clip.safetensors"
    save_file({name: x.contiguous().clone() for name, x in twin.state_dict().items()}, file)
    release = import_release(file, text_encoder, tmp_path / "out", choices=CHOICES)
    expected = converted(twin, text_encoder)
    given, wanted = (flatten(split(x.objective)[1]) for x in (release, expected))
    assert given.keys() == wanted.keys()
    assert all(np.array_equal(given[name], wanted[name]) for name in wanted)


def published_shapes():
    """Every name and shape of the published checkpoint: ViT-B on 128 x 144 x 144 and PubMedBERT."""
    width, hidden, vocabulary = 768, 3072, 30522
    shapes = {
        "vision_encoder.visual.class_embedding": (width,),
        "vision_encoder.visual.positional_embedding": (5185, width),
        "vision_encoder.visual.conv1.weight": (width, 1, 8, 8, 8),
        "vision_encoder.token_embedding.weight": (49408, 512),
        "vision_encoder.positional_embedding": (77, 512),
        "vision_encoder.ln_final.weight": (512,),
        "vision_encoder.ln_final.bias": (512,),
        "vision_encoder.logit_scale": (),
        "language_encoder.embeddings.position_ids": (1, 512),
        "language_encoder.embeddings.word_embeddings.weight": (vocabulary, width),
        "language_encoder.embeddings.position_embeddings.weight": (512, width),
        "language_encoder.embeddings.token_type_embeddings.weight": (2, width),
    }

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def linear(name, out, into):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    for name in ("ln_pre", "ln_post"):
        norm(f"vision_encoder.visual.{name}")
    norm("language_encoder.embeddings.LayerNorm")
    for index in range(12):
        block = f"vision_encoder.visual.transformer.resblocks.{index}."
        norm(f"{block}ln_1")
        norm(f"{block}ln_2")
        shapes[f"{block}attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}attn.in_proj_bias"] = (3 * width,)
        linear(f"{block}attn.out_proj", width, width)
        linear(f"{block}mlp.c_fc", hidden, width)
        linear(f"{block}mlp.c_proj", width, hidden)
        layer = f"language_encoder.encoder.layer.{index}."
        for part in ("query", "key", "value"):
            linear(f"{layer}attention.self.{part}", width, width)
        linear(f"{layer}attention.output.dense", width, width)
        norm(f"{layer}attention.output.LayerNorm")
        linear(f"{layer}intermediate.dense", hidden, width)
        linear(f"{layer}output.dense", width, hidden)
        norm(f"{layer}output.LayerNorm")
    linear("language_encoder.pooler.dense", width, width)
    linear("multi_modal_vision_proj", width, width)
    linear("multi_modal_language_proj", width, width)
    return shapes


def test_published_names_and_shapes(text_encoder):
    """The defaults fit; and every number of the checkpoint that is used is in the model."""
    shapes = published_shapes()
    held = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    release = convert_release(held, BertConfig(), load_tokenizer(text_encoder))
    flat = flatten(split(release.objective)[1])
    taken = sum(math.prod(shape) for name, shape in shapes.items() if name not in release.left_out)
    # Not counted there: position_ids and the class row of the table; the patch layer's bias is new here.
    assert sum(math.prod(x.shape) for x in flat.values()) == taken - 512 - 768 + 768
    vision = release.config.objective.vision
    assert (vision.patch, vision.width, vision.depth, vision.heads) == ((8, 8, 8), 768, 12, 12)
    assert release.objective.vision.transformer.grid == (16, 18, 18)
    assert to_torch({"logit_scale/log_scale": flat["logit_scale/log_scale"]})


def test_fine_tuning_config_fits_the_imported_folder(checkpoint, text_encoder, tmp_path):
    """configs/cardiac_clip/released.py has every choice of architecture that an import makes."""
    from medclip_jax.training.config import load_config

    file = Path(__file__).parents[2] / "configs/cardiac_clip/released.py"
    ours = load_config(file).objective
    theirs = converted_config(checkpoint, text_encoder)
    for name in ("patch", "pooling", "position", "pre_norm", "activation", "layer_norm_epsilon", "windows"):
        assert ours.vision[name] == theirs.vision[name], name
    assert ours.text.pooling == theirs.text.pooling
    assert ours.projection_bias == theirs.projection_bias


def converted_config(checkpoint, text_encoder):
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    choices = Choices(shape=SHAPE)
    return convert_release(
        {name: x.numpy() for name, x in held.items()},
        BertConfig.from_hf(text_encoder),
        load_tokenizer(text_encoder),
        choices,
    ).config.objective
