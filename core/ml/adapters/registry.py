"""The adapter kinds by name. A new kind is one file, one line here and its facts in the catalog."""

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapter_plus import AdapterPlus
from core.ml.adapters.adaptformer import AdaptFormer
from core.ml.adapters.arc import Arc
from core.ml.adapters.base import AdapterMethod
from core.ml.adapters.bitfit import BitFit
from core.ml.adapters.full import Full
from core.ml.adapters.linear_probe import LinearProbe
from core.ml.adapters.lora import Lora
from core.ml.adapters.mona import Mona
from core.ml.adapters.mosa import Mosa
from core.ml.adapters.parallel import Parallel
from core.ml.adapters.parallel_shared import ParallelShared
from core.ml.adapters.repadapter import RepAdapter
from core.ml.adapters.res_adapter import ResAdapter
from core.ml.adapters.sequential import Sequential
from core.ml.adapters.ssf import Ssf
from core.ml.adapters.vpt_deep import VptDeep

ADAPTER_METHODS: dict[AdapterKind, AdapterMethod] = {
    AdapterKind.SEQUENTIAL: Sequential(),
    AdapterKind.PARALLEL: Parallel(),
    AdapterKind.PARALLEL_SHARED: ParallelShared(),
    AdapterKind.ADAPTFORMER: AdaptFormer(),
    AdapterKind.ADAPTER_PLUS: AdapterPlus(),
    AdapterKind.LORA: Lora(),
    AdapterKind.SSF: Ssf(),
    AdapterKind.BITFIT: BitFit(),
    AdapterKind.VPT_DEEP: VptDeep(),
    AdapterKind.ARC: Arc(),
    AdapterKind.REPADAPTER: RepAdapter(),
    AdapterKind.MOSA: Mosa(),
    AdapterKind.RES_ADAPTER: ResAdapter(),
    AdapterKind.MONA: Mona(),
    AdapterKind.LINEAR_PROBE: LinearProbe(),
    AdapterKind.FULL: Full(),
}
