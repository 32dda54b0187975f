from importlib import import_module
from inspect import signature

from core.catalog.figures import FIGURES, FigureName


def test_every_figure_has_facts_and_a_module_that_makes_it():
    assert FIGURES.keys() == set(FigureName)
    for name, facts in FIGURES.items():
        assert facts.summary.endswith(".")
        module = import_module(f"core.ml.analysis.figures.{name.value}")
        assert len(signature(module.build).parameters) == 2
