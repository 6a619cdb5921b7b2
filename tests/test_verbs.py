"""The verbs of the one command lead where they say."""

import pytest

from rlvr_decode.__main__ import VERBS, main, usage


@pytest.mark.parametrize("verb", ["train", "soe", "sft", "simulate", "evaluate", "analyze"])
def test_a_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: rlvr-decode {verb}")


def test_every_verb_is_in_the_usage_and_no_other_runs(capsys):
    assert all(f"  {verb} " in usage() for verb in VERBS)
    assert main(["trian"]) == 2
    assert "no verb 'trian'" in capsys.readouterr().err
