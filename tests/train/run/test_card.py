"""Laws of the card: the Hub reads its header, and it says how the weights were made."""

import pytest
import yaml

from prompteol_jax.text.template import PROMPTEOL, Template
from train.config import TrainConfig
from train.run.card import write_card

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("full", [False, True])
def test_the_header_is_the_hubs_and_the_table_has_the_facts(full, tmp_path):
    config = TrainConfig(model="facebook/opt-2.7b", data=("/a/n.csv", "b.csv"), full=full)
    facts = {"method": "contrastive", "step": "3 of 9", "Spearman": 71.234, "none": None}
    write_card(tmp_path, config, PROMPTEOL, facts)
    _, header, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["base_model"] == "facebook/opt-2.7b"
    assert fields["license"] == "unknown"
    assert fields["library_name"] == ("transformers" if full else "peft")
    for line in ("| data | n.csv, b.csv |", "| step | 3 of 9 |", "| Spearman | 71.23 |"):
        assert line in text
    assert "none" not in text


def test_no_path_of_this_machine_and_no_broken_table(tmp_path):
    template = Template("x", "a | b\n", "c")
    write_card(tmp_path, TrainConfig(model=str(tmp_path), license='x"y'), template, {})
    text = (tmp_path / "README.md").read_text()
    assert str(tmp_path) not in text
    assert "| prompt | a \\| b *text*c |" in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == 'x"y'
