"""The adapter kinds by name. A new kind is one file, one line here and its facts in the catalog."""

from core.catalog.methods import AdapterKind
from core.ml.adapters.base import AdapterMethod
from core.ml.adapters.parallel import Parallel
from core.ml.adapters.parallel_shared import ParallelShared
from core.ml.adapters.sequential import Sequential

ADAPTER_METHODS: dict[AdapterKind, AdapterMethod] = {
    AdapterKind.SEQUENTIAL: Sequential(),
    AdapterKind.PARALLEL: Parallel(),
    AdapterKind.PARALLEL_SHARED: ParallelShared(),
}
