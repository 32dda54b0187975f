import pytest
import timm

from core.catalog.licenses import NOT_STATED, find_license_note


@pytest.mark.parametrize("license_id", ["apache-2.0", "mit", "bsd-3-clause"])
def test_permissive(license_id):
    assert find_license_note(license_id) is None


def test_not_stated():
    assert "states no licence" in find_license_note(NOT_STATED)


def test_one_that_nobody_knows_is_named():
    assert "'acme-eula'" in find_license_note("acme-eula")


def test_everything_that_timm_states_beside_the_permissive_ones_has_a_note():
    configs = (timm.get_pretrained_cfg(name) for name in timm.list_pretrained())
    stated = {config.license for config in configs if config.license}
    assert len(stated) > 10
    noted = {license_id for license_id in stated if find_license_note(license_id)}
    assert stated - noted == {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}
