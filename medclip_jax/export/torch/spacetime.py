"""Space-time transformer: frames of a study to tokens, attention divided into time and space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.blocks import Block, SelfAttention, patchify
from medclip_jax.export.torch.vision import Encoded

WINDOW_TOP = 4095.0
"""Largest intensity of a prepared frame."""


class Frames(NamedTuple):
    """Prepared frames of studies.

    `frames` (B, T, H, W): intensities of 0 to 4095. `view` (B, T): place of a frame's series in
    `config.data["views"]`, -1 for none. `valid` (B, T): False for padding, which changes nothing.
    """

    frames: Tensor
    view: Tensor
    valid: Tensor


def attend_divided(
    attention: SelfAttention, tokens: Tensor, valid: Tensor, places: int, over_time: bool
) -> Tensor:
    """The class token attends to all tokens, a patch to it and to its own place in time, or its own frame.

    Tokens are (B, 1 + T * N, W), `valid` (B, T); N is `places`.
    """
    query, key, value = attention.qkv(tokens).unflatten(2, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    seen = F.pad(valid.repeat_interleave(places, dim=1), (1, 0), value=True)[:, None, None]
    summary = F.scaled_dot_product_attention(query[:, :, :1], key, value, attn_mask=seen)

    def lines(x: Tensor) -> Tensor:  # (B, heads, 1 + T * N, K) to (B, lines, heads, patches of a line, K)
        x = x[:, :, 1:].unflatten(2, (-1, places))
        return x.permute(0, 3, 1, 2, 4) if over_time else x.permute(0, 2, 1, 3, 4)

    def with_summary(x: Tensor) -> Tensor:
        cut = lines(x)
        first = x[:, None, :, :1].expand(-1, cut.shape[1], -1, -1, -1)
        return torch.cat([first, cut], dim=3).flatten(0, 1)

    query = lines(query)
    count = query.shape[1]
    # An invalid frame is seen by its own patches alone, and by those in space.
    seen = F.pad(valid, (1, 0), value=True).repeat_interleave(count, dim=0)[:, None, None]
    mixed = F.scaled_dot_product_attention(
        query.flatten(0, 1), with_summary(key), with_summary(value), attn_mask=seen if over_time else None
    ).unflatten(0, (-1, count))
    mixed = mixed.permute(0, 2, 3, 1, 4) if over_time else mixed.permute(0, 2, 1, 3, 4)
    together = torch.cat([summary, mixed.flatten(2, 3)], dim=2)
    return attention.output(together.transpose(1, 2).flatten(2))


class SpaceTimeBlock(Block):
    """``t = x + time(norm(x))``, ``s = x + space(norm(t))``, ``s + mlp(norm(s))``."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float, activation: str):
        super().__init__(width, heads, hidden, epsilon, activation)
        self.time_norm = nn.LayerNorm(width, eps=epsilon)
        self.time_attention = SelfAttention(width, heads)

    def forward(self, tokens: Tensor, valid: Tensor, places: int) -> Tensor:
        """(B, 1 + T * N, W) to the same; `valid` (B, T), N is `places`."""
        moved = tokens + attend_divided(self.time_attention, self.time_norm(tokens), valid, places, True)
        tokens = tokens + attend_divided(self.attention, self.attention_norm(moved), valid, places, False)
        return tokens + self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(tokens))))


class SpaceTimeTransformer(nn.Module):
    """2D patches, positions in space and time, a class token, blocks, a final LayerNorm.

    Args:
        config: `objective["vision"]` of config.json.
        frame_shape: (H, W) pixels.
        channels: values of a pixel.
    """

    def __init__(self, config: dict, frame_shape: Sequence[int], channels: int):
        super().__init__()
        width, epsilon = config["width"], config["layer_norm_epsilon"]
        self.width = self.pooled_width = width
        self.patch = (1, *config["patch"])
        self.grid = tuple(size // step for size, step in zip(frame_shape, config["patch"], strict=True))
        self.places = self.grid[0] * self.grid[1]
        pixels = self.patch[1] * self.patch[2] * channels
        self.embed = nn.ModuleDict({"projection": nn.Linear(pixels, width)})
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(self.places, width))
        self.temporal_positions = nn.Parameter(torch.zeros(config["frames"], width))
        views = config["views"]
        self.view_embedding = nn.Parameter(torch.zeros(views, width)) if views else None
        block = width, config["heads"], round(width * config["mlp_ratio"]), epsilon, config["activation"]
        self.blocks = nn.ModuleList(SpaceTimeBlock(*block) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def encode(self, voxels: Tensor, valid: Tensor, view: Tensor) -> Encoded:
        """(B, T, H, W, C), (B, T) and (B, T) to tokens (B, T * N, width) and the class token's state."""
        batch, count = voxels.shape[:2]
        if count > len(self.temporal_positions):
            most = len(self.temporal_positions)
            raise ValueError(f"{count} frames, and the model knows {most} places in time: give fewer")
        tokens = self.embed["projection"](patchify(voxels, self.patch)).unflatten(1, (count, -1))
        of_frame = self.temporal_positions[:count].expand(batch, -1, -1)
        if self.view_embedding is not None:
            of_view = self.view_embedding[view.clamp(min=0).long()]
            of_frame = of_frame + of_view * (view >= 0)[..., None]
        tokens = (tokens + self.positions + of_frame[:, :, None]).flatten(1, 2)
        tokens = torch.cat([self.class_token.expand(batch, -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, valid, self.places)
        tokens = self.norm(tokens)
        return Encoded(tokens[:, 1:], tokens[:, 0])


class FrameTower(nn.Module):
    """Frames to one vector a study: scaling, then a space-time transformer.

    Args:
        config: `objective["vision"]` of config.json.
        frame_shape: (H, W) pixels.
    """

    def __init__(self, config: dict, frame_shape: Sequence[int]):
        super().__init__()
        self.channels = config["channels"]
        self.motion = config.get("motion", 0.0)
        self.video = SpaceTimeTransformer(config, frame_shape, len(self.channels) + (self.motion > 0))
        self.width = self.video.pooled_width

    @property
    def encoder(self) -> nn.Module:
        """From intensities to tokens."""
        return self.video

    def to_float(self, study: Frames) -> Tensor:
        """Intensities (B, T, H, W) to (B, T, H, W, C), by channel; the last may be motion."""
        values = study.frames.float() / WINDOW_TOP
        channels = [(values - mean) / deviation for mean, deviation in self.channels]
        if self.motion:
            channels.append(self.motion * beyond_mean_frame(values, study.view, study.valid.bool()))
        return torch.stack(channels, dim=-1).to(next(self.parameters()).dtype)

    def encode(self, study: Frames) -> Encoded:
        """Tokens (B, T * N, width), those of padding without meaning, and the class token's state."""
        return self.video.encode(self.to_float(study), study.valid.bool(), study.view)

    def forward(self, study: Frames) -> Tensor:
        """The class token's state (B, `width`)."""
        return self.encode(study).summary


def beyond_mean_frame(frames: Tensor, view: Tensor, valid: Tensor) -> Tensor:
    """What each frame (B, T, H, W) differs by from the mean frame of its series; 0 on padding."""
    together = (view[:, :, None] == view[:, None]) & valid[:, None] & valid[:, :, None]
    share = together / together.sum(dim=2, keepdim=True).clamp(min=1)
    frames = torch.where(valid[..., None, None], frames, 0.0)
    return frames - torch.einsum("btu,buhw->bthw", share.to(frames.dtype), frames)
