"""What exported models have that read texts, too: tokenizer, comparison, zero-shot."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medclip_jax.export.torch.bert import TextTower
from medclip_jax.export.torch.loading import MedclipConfig
from medclip_jax.export.torch.model import Embedding, MedclipOutput, VolumeModel
from medclip_jax.export.torch.tokenizer import TOKENIZER_FILES, read_tokenizer


class TextModel(VolumeModel):
    """A volume tower and a text tower in one space.

    `texts` are strings, or their ids (B, L). A subclass defines `see` and `read`; where the scale of its
    logits is learned, its `__init__` calls `add_scale`.
    """

    has_text = True
    more_files = TOKENIZER_FILES

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        self.tokenizer = None
        self.text = TextTower(config.objective["text"], config.data)
        self.logit_scale = nn.ParameterDict()

    def read(self, tokens: Tensor) -> Embedding:
        """Vectors of ids (B, L), with gradients."""
        raise NotImplementedError

    def add_scale(self, bias: bool) -> None:
        """Add the learned scale of the logits and, with `bias`, what is added to them."""
        names = ("log_scale", "bias") if bias else ("log_scale",)
        self.logit_scale = nn.ParameterDict({name: torch.zeros(()) for name in names})

    def take_files(self, files: dict[str, str]) -> None:
        """Read the tokenizer."""
        super().take_files(files)
        self.tokenizer = read_tokenizer(files, self.config.text_length, self.config.data["pad_token"])

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Ids (B, text_length) of texts, cut and padded."""
        if self.tokenizer is None:
            raise ValueError(
                "no tokenizer: the model's folder has no vocab.txt (a tokenizer.json alone needs the "
                "tokenizers package); give ids"
            )
        return self.tokenizer([texts] if isinstance(texts, str) else list(texts))

    def scale(self) -> Tensor:
        """The learned multiplier of cosines, within 1 and 100; 1 where none is learned."""
        if "log_scale" not in self.logit_scale:
            return torch.ones(())
        return self.logit_scale["log_scale"].clamp(0.0, math.log(100.0)).exp()

    def forward(self, volumes=None, texts=None) -> MedclipOutput:
        """Embed volumes, texts, or both and compare them. With gradients."""
        seen = None if volumes is None else self.see(self.prepared(volumes))
        read = None
        if texts is not None:
            tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
            read = self.read(tokens.to(next(self.parameters()).device))
        logits = None
        if seen is not None and read is not None:
            logits = self.scale() * similarity(seen, read)
            logits = logits + self.logit_scale["bias"] if "bias" in self.logit_scale else logits
        return MedclipOutput(seen, read, logits)

    @torch.no_grad()
    def embed_texts(self, texts) -> Embedding:
        """Vectors of texts, mean (B, E); log_variance (B, E) where the model has one."""
        if not isinstance(texts, Tensor):
            texts = [texts] if isinstance(texts, str) else list(texts or ())
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError("give one text or a list of texts, none of them empty")
        return self(texts=texts).texts

    @torch.no_grad()
    def zero_shot(self, volumes, findings=None) -> dict[str, float] | Tensor:
        """Probability of findings: the softmax over "There is X." and "There is no X.", or a finding's own.

        Args:
            volumes: see the class.
            findings: names in config.prompts, in any case and with spaces, by default all; or
                {name: (positive, negative)}, each a sentence or a list of several, which are averaged.

        Returns:
            {finding: probability} of a single volume; of several, (B, F) float64 on the CPU.
        """
        known = self.config.prompts
        if not isinstance(findings, dict):
            names = [findings] if isinstance(findings, str) else list(known if findings is None else findings)
            plain = {name: re.sub(r"[\W_]+", "_", str(name).strip().lower()) for name in names}
            if not names or not known.keys() >= set(plain.values()):
                raise KeyError(f"give names among {[*known]}, or {{name: (positive, negative)}}; not {names}")
            findings = {name: known[plain[name]] for name in names}
        sides = [[x] if isinstance(x, str) else list(x) for pair in findings.values() for x in pair]
        texts = averaged(self.embed_texts([text for side in sides for text in side]), list(map(len, sides)))
        alike = similarity(*map(doubled, (self.embed_volumes(volumes), texts)))
        positive, negative = alike.unflatten(1, (-1, 2)).unbind(2)
        scores = torch.sigmoid(self.scale().item() * (positive - negative))
        single = self.is_single(volumes)
        return dict(zip(findings, scores[0].tolist(), strict=True)) if single else scores


def doubled(embedding: Embedding) -> Embedding:
    """In float64 on the CPU."""
    return Embedding(*(None if part is None else part.cpu().double() for part in embedding))


def averaged(texts: Embedding, counts: list[int]) -> Embedding:
    """One embedding for each group of texts: their mean, of length 1, with the mean of the variances."""
    if max(counts) == 1:
        return texts
    means = [group.mean(dim=0) if len(group) > 1 else group[0] for group in texts.mean.split(counts)]
    mean = torch.stack([nn.functional.normalize(one, dim=0) for one in means])
    if texts.log_variance is None:
        return Embedding(mean)
    groups = texts.log_variance.split(counts)
    return Embedding(mean, torch.stack([group.exp().mean(dim=0).log() for group in groups]))


def similarity(volumes: Embedding, texts: Embedding) -> Tensor:
    """(volumes, texts): cosines; of Gaussians less half of both traces, 1 - CSD / 2."""
    alike = volumes.mean @ texts.mean.T
    if volumes.log_variance is None:
        return alike
    seen, read = (embedding.log_variance.exp().sum(dim=-1) for embedding in (volumes, texts))
    return alike - 0.5 * (seen[:, None] + read[None, :])
