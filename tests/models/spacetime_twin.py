"""The space-time ViT in torch, from its description: dense attention under explicit masks, released names."""

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, allowed):
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bihk,bjhk->bhij", query, key) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
        return self.proj(torch.einsum("bhij,bjhk->bihk", weights, value).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attn, self.timeattn = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x, in_time, in_space):
        t = x + self.timeattn(self.norm3(x), in_time)
        s = x + self.attn(self.norm1(t), in_space)
        return s + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(s))))


class SpaceTime(nn.Module):
    """Frames (B, T, C, H, W) to all tokens (B, 1 + T * N, W) after the final norm, the class token first."""

    def __init__(self, *, places, patch, channels, width, depth, heads, hidden, frames):
        super().__init__()
        self.places = places
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + places, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, frames, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def randomize(self, amount=0.1):
        """Move every parameter, so that zero biases and unit scales cannot hide a mistake."""
        for parameter in self.parameters():
            parameter.data += amount * torch.randn_like(parameter)
        return self

    def allowed(self, valid, over_time):
        """(B, 1 + T * N, 1 + T * N): which token may attend to which."""
        batch, count = valid.shape
        frame = torch.arange(count).repeat_interleave(self.places)
        place = torch.arange(self.places).repeat(count)
        line = place if over_time else frame
        table = torch.ones(batch, 1 + len(line), 1 + len(line), dtype=torch.bool)
        table[:, 1:, 1:] = line[:, None] == line[None]
        hidden = ~valid[:, frame]
        table[:, 0, 1:] &= ~hidden
        if over_time:
            table[:, 1:, 1:] &= ~hidden[:, None]
        return table

    def forward(self, frames, valid=None, added=None):
        """`added` (B, T, W) goes to all patches of a frame."""
        batch, count = frames.shape[:2]
        valid = torch.ones(batch, count, dtype=torch.bool) if valid is None else valid
        patches = self.patch_embed["proj"](frames.flatten(0, 1)).flatten(2).transpose(1, 2)
        patches = patches.unflatten(0, (batch, count)) + self.pos_embed[:, None, 1:]
        patches = patches + self.temporal_embed[:, :count, None]
        patches = patches if added is None else patches + added[:, :, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = torch.cat([first, patches.flatten(1, 2)], dim=1)
        in_time, in_space = self.allowed(valid, True), self.allowed(valid, False)
        for block in self.blocks:
            x = block(x, in_time, in_space)
        return self.norm(x)
