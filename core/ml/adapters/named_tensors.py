"""Trainable tensors under the dotted names that they have in the network."""

from collections.abc import Mapping

from torch import Tensor, nn


class NamedTensors(nn.Module):
    """A tree of parameters whose `state_dict` has the names that it was made with.

    `nn.ParameterDict` allows no dots in its keys; here every part of a name is a module, as in the
    network that the names come from, so that a file of `adapters.blocks.0.attn.qkv.bias` reads
    like one of the network.

    Args:
        tensors: initial values by dotted name; no name is the beginning of another one.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            node: nn.Module = self
            for part in path:
                if part not in node._modules:  # noqa: SLF001 - hasattr would find methods too
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            node.register_parameter(leaf, nn.Parameter(tensor))
