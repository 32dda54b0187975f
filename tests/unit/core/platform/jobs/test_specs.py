import json

from core.platform.jobs.specs import JobSpec
from tests.integration.platform.rows import SPEC


def test_a_spec_survives_being_stored():
    figures = [{"name": "tsne"}, {"name": "attention_map", "item": "a/ö.png"}]
    spec = JobSpec(**{**SPEC.to_json(), "figures": figures})
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_stored_before_there_were_figures_asks_for_none():
    stored = SPEC.to_json()
    del stored["figures"]
    assert JobSpec.from_json(stored).figures == []
    assert JobSpec.from_json(stored) == SPEC
