"""Whether a stored model fits a network that is here."""

import torch
from torch import nn

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import check_adapter_state
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.load import LoadedBackbone
from core.ml.export.bundle import Bundle, check_weights


class Fitting:
    """What models must be like to be put into one network.

    Args:
        backbone: the network.
    """

    def __init__(self, backbone: LoadedBackbone) -> None:
        self._backbone = backbone
        self._shapes: dict[tuple[AdapterKind, int], dict[str, torch.Size]] = {}

    def check(self, bundle: Bundle) -> None:
        """Refuse a model that belongs on another network, or whose tensors are not its kind's.

        Raises:
            WeightsMismatchError: the network's weights are not those that it was trained on.
            UnsupportedAdapterError: the kind has no place in the network.
            AdapterStateError: a name is missing or unknown, a shape differs, or a value is not
                finite.
        """
        check_weights(bundle, self._backbone)
        classes = len(bundle.classes)
        head = {
            "head.weight": torch.Size((classes, self._backbone.num_features)),
            "head.bias": torch.Size((classes,)),
        }
        check_adapter_state(bundle.state, self._find_shapes(bundle.spec) | head)

    def _find_shapes(self, spec: AdapterSpec) -> dict[str, torch.Size]:
        # Kept: building a kind's modules, even without memory, takes longer than all else in the
        # admission of a model but the forward of its certificate.
        key = (spec.kind, spec.hidden_dim)
        if key not in self._shapes:
            method = ADAPTER_METHODS[spec.kind]
            method.check(self._backbone, spec)
            with torch.device("meta"):
                parts = nn.ModuleDict({"adapters": method.build(self._backbone, spec)})
            self._shapes[key] = {name: p.shape for name, p in parts.named_parameters()}
        return self._shapes[key]
