"""A checkpoint with the published names, against a PyTorch twin written from the equations."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from flax import nnx
from torch import nn

import medclip_jax
from medclip_jax import objectives
from medclip_jax.cli.main import main
from medclip_jax.export.released_asap import convert_release, import_release
from medclip_jax.models.bert import BertConfig
from medclip_jax.models.patches import unpatchify
from medclip_jax.objectives import asap
from medclip_jax.parameters import flatten, split, unflatten
from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece
from medclip_jax.training.config import base_config
from medclip_jax.training.initial import load_initial_weights
from tests.export.twins import compiled, made_volumes

WIDTH, DECODER, ORGANS, SIDE = 384, 192, 9, 7
PATCH = (6, 4, 2)  # right, anterior, superior
SHAPE = tuple(SIDE * step for step in PATCH[::-1])
TOKENS = SIDE**3
SEEN = round(TOKENS / 4)
BERT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


def attend(query, key, value, heads, mask=None):
    """Softmax attention of (B, T, W)."""
    query, key, value = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def group(**modules):
    """A module with such children."""
    found = nn.Module()
    for name, module in modules.items():
        found.add_module(name, module)
    return found


def feature_head(width):
    return group(
        dense_to_hidden=nn.Linear(width, width),
        LayerNorm=nn.LayerNorm(width, eps=1e-12),
        dense_to_output=nn.Linear(width, width),
    )


def run_head(head, x):
    return head.dense_to_output(head.LayerNorm(F.gelu(head.dense_to_hidden(x))))


def vit_block(width):
    return group(
        norm1=nn.LayerNorm(width, eps=1e-6),
        attn=group(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width)),
        norm2=nn.LayerNorm(width, eps=1e-6),
        mlp=group(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width)),
    )


def run_vit_block(block, x, heads):
    x = x + block.attn.proj(attend(*block.attn.qkv(block.norm1(x)).chunk(3, dim=-1), heads))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def projections():
    return {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}


def output(seen):
    return group(dense=nn.Linear(seen, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, eps=1e-12))


def bert_block(**more):
    attention = nn.Module()
    attention.add_module("self", group(**projections()))
    attention.add_module("output", output(WIDTH))
    dense = group(dense=nn.Linear(WIDTH, 2 * WIDTH))
    return group(attention=attention, intermediate=dense, output=output(2 * WIDTH), **more)


def run_output(module, x, before):
    return module.LayerNorm(module.dense(x) + before)


def run_bert_attention(block, x, mask):
    maps = block.attention.self
    mixed = attend(maps.query(x), maps.key(x), maps.value(x), 3, mask)
    return run_output(block.attention.output, mixed, x)


def run_bert_mlp(block, x):
    return run_output(block.output, F.gelu(block.intermediate.dense(x)), x)


def positions(width):
    """Class token, then patches: sines and cosines of right, of anterior, of superior."""
    omega = 10_000.0 ** (-np.arange(width // 6) / (width // 6))
    table = [np.zeros(width)]
    for index in np.ndindex(SIDE, SIDE, SIDE):
        table.append(np.concatenate([f(place * omega) for place in index for f in (np.sin, np.cos)]))
    return nn.Parameter(torch.tensor(np.stack(table), dtype=torch.float32)[None], requires_grad=False)


class Twin(nn.Module):
    """All arrays are (right, anterior, superior)."""

    def __init__(self, vocabulary):
        super().__init__()
        voxels = int(np.prod(PATCH))
        self.patch_embed = group(proj=nn.Conv3d(1, WIDTH, PATCH, PATCH))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList([vit_block(WIDTH), vit_block(WIDTH)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.decoder_embed = nn.Linear(WIDTH, DECODER)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER))
        self.decoder_blocks = nn.ModuleList(vit_block(DECODER) for _ in range(3))
        self.decoder_norm = nn.LayerNorm(DECODER, eps=1e-6)
        self.decoder_pred_layer = nn.Linear(DECODER, voxels)
        self.decoder_injection_pred_layer_0 = nn.Linear(DECODER, ORGANS)
        self.decoder_injection_pred_norm = nn.LayerNorm(ORGANS, eps=1e-6)
        self.decoder_injection_pred_layer_1 = nn.Linear(ORGANS, ORGANS)
        self.bert_encoder = transformers.BertForMaskedLM(
            transformers.BertConfig(vocab_size=vocabulary, **BERT)
        )
        self.bert_encoder.cls_projection_head = feature_head(WIDTH)
        self.bert_feature_proj, self.align_text_mlp, self.finding_align_img_mlp = (
            feature_head(WIDTH) for _ in range(3)
        )
        self.bert_mlp, self.bert_topk_mlp = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.regression_head = nn.Linear(WIDTH, 1)
        fusion = bert_block(
            cross_self_attention=group(**projections()),
            gap_mlp=nn.Linear(WIDTH, WIDTH),
            out_layer=output(WIDTH),
        )
        self.bert_decoder = group(
            bert=group(
                embeddings=group(word_embeddings=nn.Embedding(vocabulary, WIDTH)),
                encoder=group(layer=nn.ModuleList([bert_block(), bert_block()])),
                pooler=group(dense=nn.Linear(WIDTH, WIDTH)),
                fusion_layer=fusion,
            ),
            cls=group(
                predictions=group(transform=output(WIDTH), decoder=nn.Linear(WIDTH, vocabulary)),
            ),
        )
        self.bert_decoder.cls.predictions.bias = self.bert_decoder.cls.predictions.decoder.bias
        for parameter in self.parameters():
            parameter.data += 0.03 * torch.randn_like(parameter)
        self.pos_embed, self.decoder_pos_embed = positions(WIDTH), positions(DECODER)

    def encode(self, volumes, keep):
        """Volumes in [-1, 1] to the class token's state and those of the patches `keep`."""
        tokens = self.patch_embed.proj(volumes[:, None]).flatten(2).transpose(1, 2)
        tokens = (tokens + self.pos_embed[:, 1:])[:, keep]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = run_vit_block(block, tokens, 6)
        return self.norm(tokens)

    def decode(self, tokens, keep):
        """Predicted volumes, and logits of organs by patch."""
        tokens = self.decoder_embed(tokens)
        placed = self.mask_token.repeat(len(tokens), TOKENS, 1)
        placed[:, keep] = tokens[:, 1:]
        tokens = torch.cat([tokens[:, :1], placed], dim=1) + self.decoder_pos_embed
        states = []
        for block in self.decoder_blocks:
            tokens = run_vit_block(block, tokens, 4)
            states.append(tokens[:, 1:])
        normed = self.decoder_injection_pred_norm(self.decoder_injection_pred_layer_0(states[1]))
        organs = self.decoder_injection_pred_layer_1(F.relu(normed))
        patches = self.decoder_pred_layer(self.decoder_norm(states[-1]))
        cut = patches.reshape(-1, SIDE, SIDE, SIDE, *PATCH).permute(0, 1, 4, 2, 5, 3, 6)
        return cut.reshape(len(patches), *SHAPE[::-1]), organs

    def read(self, ids):
        return self.bert_encoder.bert(ids, attention_mask=(ids != 0).long()).last_hidden_state

    def sentences(self, ids, sentence, count):
        states = run_head(self.align_text_mlp, self.read(ids))
        own = [[states[b][sentence[b] == s].mean(0) for s in range(count)] for b in range(len(ids))]
        return torch.stack([torch.stack(row) for row in own])

    def align(self, tokens, ids, sentence, count):
        """Cosines of sentences and patches, numbers of patches, and the mean of what is aligned."""
        patches = run_head(self.finding_align_img_mlp, tokens[:, 1:])
        sentences = self.sentences(ids, sentence, count)
        similarity = F.normalize(sentences, dim=-1) @ F.normalize(patches, dim=-1).transpose(1, 2)
        numbers = 2 ** (3 * self.regression_head(sentences).sigmoid()[..., 0] + 4).int()
        aligned = torch.zeros_like(sentences)
        for b in range(len(ids)):
            for s in range(count):
                aligned[b, s] = patches[b, similarity[b, s].topk(int(numbers[b, s])).indices].mean(0)
        return similarity, numbers, aligned.mean(dim=1)

    def words(self, tokens, ids, aligned):
        mask = ids != 0
        volume = self.bert_mlp(tokens[:, 1:])
        overall = volume.mean(dim=1, keepdim=True)
        volume = torch.cat([0.2 * aligned[:, None], volume], dim=1)
        states = run_head(self.bert_feature_proj, self.read(ids))
        fusion = self.bert_decoder.bert.fusion_layer
        states = run_bert_attention(fusion, states, mask)
        maps = fusion.cross_self_attention
        found = attend(maps.query(states), maps.key(volume), maps.value(volume), 3)
        states = run_bert_mlp(fusion, run_output(fusion.out_layer, found + fusion.gap_mlp(overall), states))
        for block in self.bert_decoder.bert.encoder.layer:
            states = run_bert_mlp(block, run_bert_attention(block, states, mask))
        last = self.bert_decoder.cls.predictions
        return last.decoder(last.transform.LayerNorm(F.gelu(last.transform.dense(states))))


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_wordpiece(["there is cardiomegaly.", "the aorta is calcified."] * 3, folder, 90)
    (folder / "config.json").write_text(json.dumps({"vocab_size": tokenizer.vocabulary_size, **BERT}))
    return folder


@pytest.fixture(scope="module")
def twin(text_encoder):
    torch.manual_seed(0)
    return Twin(json.loads((text_encoder / "config.json").read_text())["vocab_size"]).eval()


def state_of(twin):
    return {name: x.numpy() for name, x in twin.state_dict().items()}


def converted(twin, text_encoder, state_dict=None):
    return convert_release(
        state_dict or state_of(twin), BertConfig.from_hf(text_encoder), load_tokenizer(text_encoder)
    )


def test_all_parts_compute_the_same(twin, text_encoder):
    volumes = made_volumes(2, SHAPE)
    random = np.random.default_rng(0)
    ids = random.integers(5, twin.bert_encoder.config.vocab_size, (2, 12))
    ids[0, 9:] = 0
    sentence = np.where(ids == 0, -1, np.arange(12) // 4)
    sentence[0, :3], sentence[1, 3] = 0, 1
    ids[:, 0], sentence[:, 0] = 2, -1
    with torch.no_grad():  # so that sentences differ in their numbers of patches
        scores = twin.regression_head(twin.sentences(torch.tensor(ids), torch.tensor(sentence), 3))
        twin.regression_head.weight *= 2 / scores.std()
        twin.regression_head.bias.copy_((twin.regression_head.bias - scores.mean()) * 2 / scores.std())
    release = converted(twin, text_encoder)
    turned = np.arange(TOKENS).reshape(SIDE, SIDE, SIDE).transpose(2, 1, 0).reshape(-1)
    seen = random.permutation(TOKENS)[:SEEN]  # in our order
    hidden = np.setdiff1d(np.arange(TOKENS), seen)
    restore = np.tile(np.argsort(np.concatenate([seen, hidden])), (2, 1))

    def tell(objective, volumes, keep, restore, ids, sentence):
        voxels = objective.vision.to_voxels(volumes)
        whole, part = objective.vision.encode(voxels), objective.vision.encode(voxels, keep)
        predicted, states = objective.decoder.with_states(part, restore, block=objective.anatomy_block)
        batch = {"tokens": ids, "sentence": sentence, "sentences": ids[:, 0]}
        compared = objective._compared(whole.tokens, batch)
        prior = objective._align(*compared, objective._choose(*compared[:2]), batch["sentences"])[1]
        words = objective.text_decoder.logits(objective._decode(ids[::-1], whole.tokens, prior))
        budget = objective.budget(objective._sentences(ids, sentence)[0])[0]
        selected = objective.select({"volume": volumes}, ids, sentence)
        picture = unpatchify(predicted, (SIDE,) * 3, PATCH[::-1], 1)[..., 0]
        return whole.sequence, picture, objective.organ_head(states), words, budget, selected

    keep = np.tile(seen, (2, 1))
    tokens, picture, organs, words, budget, selected = compiled(
        release.objective, tell, volumes, keep, restore, ids, sentence
    )
    theirs = torch.tensor(volumes.transpose(0, 3, 2, 1) / 1000, dtype=torch.float32).clamp(-1, 1)
    ids, sentence = torch.tensor(ids), torch.tensor(sentence)
    with torch.no_grad():
        everything = twin.encode(theirs, torch.arange(TOKENS))
        # Their index of a patch is `turned` at ours.
        there = torch.tensor(turned[seen])
        expected_picture, expected_organs = twin.decode(twin.encode(theirs, there), there)
        similarity, numbers, aligned = twin.align(everything, ids, sentence, 3)
        expected_words = twin.words(everything, ids.flip(0), aligned)

    def same(ours, given):
        ours, given = np.asarray(ours), given.numpy()
        assert ours.shape == given.shape
        np.testing.assert_allclose(ours, given, rtol=0, atol=1e-5 * max(1.0, np.abs(given).max()))
        assert given.std() > 1e-2

    order = [0, *(1 + turned)]
    thirds = np.arange(WIDTH).reshape(3, -1)[::-1].reshape(-1)  # features: of superior, anterior, right
    same(tokens, everything[:, order][..., thirds])
    same(picture, expected_picture.permute(0, 3, 2, 1))
    same(organs, expected_organs[:, turned])
    same(selected.similarity[:, :3], similarity[:, :, turned])
    np.testing.assert_array_equal(budget[:, :3], numbers)
    assert len(numbers.unique()) > 1, "budgets that do not vary prove nothing"
    same(words, expected_words)


def test_command(twin, text_encoder, tmp_path, capsys):
    file, out = tmp_path / "ASAP.pth", tmp_path / "out"
    torch.save({"model": twin.state_dict(), "epoch": 199}, file)
    command = ["import", "--format", "asap", "--checkpoint", str(file), "--text-encoder", str(text_encoder)]
    assert main([*command, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "bert_topk_mlp" in told
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["shape"] == list(SHAPE)
    assert config["data"]["spacing"] == [3.0, 1.5, 1.5]
    assert config["data"]["organs"][:2] == ["background", "class_1"]
    objective = config["objective"]
    assert (objective["denominator"], objective["padded"]) == ("all", "negatives")
    assert (objective["anatomy"]["organ_reduction"], objective["selection"]["learned"]) == ("mean", False)
    assert str(tmp_path) not in "".join(f.read_text() for f in out.iterdir() if f.suffix in (".json", ".md"))
    model = medclip_jax.load(out, progress=False)
    assert model.embed_texts(["there is cardiomegaly."]).shape == (1, WIDTH)
    assert main([*command, "--out", str(tmp_path / "other"), "--shape", "8", "8", "8"]) == 2
    assert "--shape: of --format cardiac_clip" in capsys.readouterr().err


def test_a_run_starts_from_it(twin, text_encoder, tmp_path):
    """The default config fits, but for sizes; organs of one's own get a head of their own."""
    torch.save({"model": twin.state_dict()}, tmp_path / "ASAP.pth")
    release = import_release(tmp_path / "ASAP.pth", text_encoder, tmp_path / "out")
    config = asap.default_config()
    config.vision.update(patch=PATCH[::-1], width=WIDTH, depth=2, heads=6)
    config.text.update(width=WIDTH, depth=1, heads=6, mlp_ratio=0.25, max_positions=64)
    config.decoder.update(width=DECODER, depth=3, heads=4)
    config.text_decoder.update(depth=2, heads=3)
    spec = dataclasses.replace(release.spec, organs=("heart", "aorta"))
    fresh = nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0)))
    drawn = {name: np.full(leaf.shape, 7, leaf.dtype) for name, leaf in flatten(split(fresh)[1]).items()}
    start = base_config().initial_weights
    start.update(workdir=str(tmp_path / "out"), include=(r"^(?!organ_head/)",))
    found = flatten(load_initial_weights(start, unflatten(drawn)))
    given = flatten(split(release.objective)[1])
    for name, value in found.items():
        own = name.startswith("organ_head/")
        np.testing.assert_array_equal(value, drawn[name] if own else given[name], err_msg=name)


def test_what_is_left_out(twin, text_encoder):
    left = {name.rpartition(".")[0] for name in converted(twin, text_encoder).left_out}
    assert left == {
        "bert_topk_mlp",
        "bert_decoder.bert.embeddings.word_embeddings",
        "bert_decoder.bert.pooler.dense",
        "bert_decoder.cls.predictions",
        "bert_encoder.cls.predictions",
        "bert_encoder.cls.predictions.transform.dense",
        "bert_encoder.cls.predictions.transform.LayerNorm",
        "bert_encoder.cls.predictions.decoder",
        "bert_encoder.cls_projection_head.dense_to_hidden",
        "bert_encoder.cls_projection_head.LayerNorm",
        "bert_encoder.cls_projection_head.dense_to_output",
    }


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("regression_head.bias", r"lacks regression_head\.bias\. Give the one that its pretraining wrote"),
        ("decoder_blocks.1.mlp.fc2.weight", r"lacks decoder_blocks\.1\.mlp\.fc2\.weight"),
        ("blocks.1.norm2.weight", "lacks blocks/1/mlp_norm"),
        ("bert_encoder.bert.encoder.layer.0.output.dense.bias", r"encoder\.layer\.0\.output\.dense\.bias"),
    ],
)
def test_missing_parts_are_named(twin, text_encoder, without, message):
    held = state_of(twin)
    del held[without]
    with pytest.raises(ValueError, match=message):
        converted(twin, text_encoder, held)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder_pos_embed", lambda x: x + 0.1, "positions decoder_pos_embed are not the sines and cosines"),
        ("pos_embed", lambda x: x[..., ::-1], "positions pos_embed are not the sines and cosines"),
        ("pos_embed", lambda x: x[:, :-1], "342 positions"),
        ("regression_head.weight", lambda x: x[:, :-1], r"budget\.score\.weight has shape \(1, 383\)"),
    ],
)
def test_what_does_not_fit_is_named(twin, text_encoder, name, value, message):
    held = state_of(twin)
    held[name] = value(held[name])
    with pytest.raises(ValueError, match=message):
        converted(twin, text_encoder, held)
