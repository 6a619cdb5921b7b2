"""What an engine is started with."""

import os

from rlvr_decode.engine.launch import bound_kept_products


def test_a_server_bounds_the_products_that_are_kept_unless_told_otherwise(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for set_before, then in ((None, "256"), ("1024", "1024")):
        monkeypatch.delenv(name, raising=False)
        if set_before is not None:
            monkeypatch.setenv(name, set_before)
        bound_kept_products()
        assert os.environ[name] == then
