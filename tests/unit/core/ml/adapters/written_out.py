"""A ViT and a Swin written out operation by operation in float64, from their tensors alone.

Nothing of timm's arithmetic is used: of the network only sizes are read. `change(name, x, y)`
stands behind each operation, with its name in the network, its input and its output, channels last,
and gives what goes on instead of y. Attention in windows is attention between all tokens with minus
infinity wherever two are not in one window.
"""

import math

import torch
from timm.models.swin_transformer import SwinTransformer


def double_state(network):
    return {name: tensor.double() for name, tensor in network.state_dict().items()}


def written_out_features(network, state, images, change=lambda _name, _x, y: y):
    """Pooled features of float64 images, (batch, num_features)."""
    net = _Net(network, state, change)
    return net.swin(images) if isinstance(network, SwinTransformer) else net.vit(images)


def written_out_logits(model, state, images, change=lambda _name, _x, y: y):
    features = written_out_features(model.backbone.module, state, images, change)
    return features @ model.head.weight.double().T + model.head.bias.double()


def assert_written_out(model, images, change=lambda _name, _x, y: y, *, state=None, draws=None):
    """Logits and the gradient of every trainable tensor must be those of the formula.

    Args:
        model: on a float64 network.
        images: float64.
        change: see above.
        state: the network's tensors, where they are not the pretrained ones.
        draws: what the model draws its dropout from; `change` has its own.
    """
    network = model.backbone.module
    assert next(network.parameters()).dtype == torch.float64
    own = model.trainable_parameters()
    generator = torch.Generator().manual_seed(6)
    weights = torch.randn(len(images), model.head.out_features, generator=generator).double()

    def gradients(logits):
        return torch.autograd.grad((logits.double() * weights).sum(), list(own.values()))

    logits = model(images, draws=draws)
    wanted = written_out_logits(model, state or double_state(network), images, change)
    assert torch.allclose(logits.double(), wanted, rtol=1e-5, atol=1e-5)
    plain = written_out_logits(model, double_state(network), images)
    assert (wanted - plain).abs().max() > 0.05  # the formula does something
    for name, got, expected in zip(own, gradients(logits), gradients(wanted), strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * expected.abs().max()), name


class _Net:
    def __init__(self, network, state, change):
        self.network, self.state, self.change = network, state, change

    def linear(self, name, x):
        y = x @ self.state[f"{name}.weight"].T
        if f"{name}.bias" in self.state:
            y = y + self.state[f"{name}.bias"]
        return self.change(name, x, y)

    def norm(self, name, x):
        eps = self.network.get_submodule(name).eps
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return self.change(name, x, y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"])

    def patches(self, images):
        """A convolution whose kernel is as large as its stride: (batch, rows, columns, width)."""
        kernel = self.state["patch_embed.proj.weight"]
        width, colours, side, _ = kernel.shape
        batch, _, px, _ = images.shape
        rows = px // side
        cut = images.reshape(batch, colours, rows, side, rows, side).permute(0, 2, 4, 1, 3, 5)
        cut = cut.reshape(batch, rows, rows, colours * side * side)
        y = cut @ kernel.reshape(width, -1).T + self.state["patch_embed.proj.bias"]
        return self.change("patch_embed.proj", cut, y)

    def attention(self, name, x, heads, bias):
        """x: (batch, tokens, width); bias: what is added to the scores, (heads, tokens, tokens)."""
        width = x.shape[-1]
        q, k, v = self.linear(f"{name}.qkv", x).split(width, dim=-1)
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width // heads)
            mixed.append((scores + bias[head]).softmax(-1) @ v[..., part])
        return self.linear(f"{name}.proj", torch.cat(mixed, dim=-1))

    def mlp(self, name, x):
        hidden = self.linear(f"{name}.fc1", x)
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return self.linear(f"{name}.fc2", hidden)

    def block(self, name, x, heads, bias):
        def scaled(branch, y):
            return y * self.state.get(f"{name}.{branch}.gamma", 1.0)

        attended = self.attention(f"{name}.attn", self.norm(f"{name}.norm1", x), heads, bias)
        y = x + scaled("ls1", attended)
        return y + scaled("ls2", self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", y)))

    def vit(self, images):
        net, state = self.network, self.state
        x = self.patches(images).flatten(1, 2)
        x = torch.cat((state["cls_token"].expand(len(x), -1, -1), x), dim=1) + state["pos_embed"]
        heads = net.blocks[0].attn.num_heads
        for index in range(len(net.blocks)):
            x = self.block(f"blocks.{index}", x, heads, torch.zeros(heads, 1, 1))
        if net.global_pool == "token":
            return self.norm("norm", x)[:, 0]
        return self.norm("fc_norm", x[:, 1:].mean(1))

    def swin(self, images):
        x = self.norm("patch_embed.norm", self.patches(images))
        for stage, layer in enumerate(self.network.layers):
            if stage > 0:
                parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
                merged = self.norm(f"layers.{stage}.downsample.norm", torch.cat(parts, dim=-1))
                x = self.linear(f"layers.{stage}.downsample.reduction", merged)
            batch, rows, _, width = x.shape
            x = x.reshape(batch, rows * rows, width)
            for index, block in enumerate(layer.blocks):
                name = f"layers.{stage}.blocks.{index}"
                table = self.state[f"{name}.attn.relative_position_bias_table"]
                bias = _window_bias(table, rows, block.window_size[0], block.shift_size[0])
                x = self.block(name, x, block.attn.num_heads, bias)
            x = x.reshape(batch, rows, rows, width)
        return self.norm("norm", x).mean((1, 2))


def _window_bias(table, rows, window, shift):
    """Bias (heads, tokens, tokens): from the table within a window, minus infinity elsewhere.

    Shifted windows begin `shift` rows later and go round the edge; a window's parts from both edges
    do not see each other.
    """
    shifted = (torch.arange(rows) - shift) % rows
    went_round = shifted >= rows - shift if shift else torch.zeros(rows, dtype=torch.bool)
    place = torch.stack((shifted // window, went_round), dim=-1)
    same = (place[:, None] == place[None]).all(-1)  # (rows, rows), rows and columns alike
    together = (same[:, None, :, None] & same[None, :, None, :]).reshape(rows**2, rows**2)
    apart = shifted[:, None] - shifted[None]
    down = apart[:, None, :, None].expand(rows, rows, rows, rows).reshape(rows**2, rows**2)
    across = apart[None, :, None, :].expand(rows, rows, rows, rows).reshape(rows**2, rows**2)
    index = (down + window - 1) * (2 * window - 1) + across + window - 1
    bias = table[index.clamp(0, len(table) - 1)].permute(2, 0, 1)
    return bias.masked_fill(~together, -math.inf)
