from __future__ import annotations

import os
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from lissome.core.config import Config, line_of, read_yaml
from lissome.core.errors import BadConfig

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1)


class Columns(Config):
    text: str
    label: str = "label"


class Recipe(Config):
    kind: Literal["text", "image"]
    columns: Columns
    sizes: tuple[int, ...] = ()
    share: float = Field(0.2, gt=0, lt=1)
    extra: Columns | None = None

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        return kind


GOOD = """\
kind: text
columns:
  text: review
  label: sentiment
sizes: [1, 2]
"""


def read(tmp_path, text: str | bytes) -> Recipe:
    path = tmp_path / "task.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, Recipe)


def complaint(tmp_path, text: str | bytes) -> str:
    with pytest.raises(BadConfig) as caught:
        read(tmp_path, text)
    return str(caught.value).replace(str(tmp_path) + os.sep, "")


def test_a_good_file(tmp_path):
    assert read(tmp_path, GOOD) == Recipe(kind="text", columns=Columns(text="review", label="sentiment"), sizes=(1, 2))


def test_unknown_key_names_its_line_and_the_nearest_known_key(tmp_path):
    text = complaint(tmp_path, GOOD + "\n# a comment\nshere: 0.3\n")
    assert text.startswith('task.yaml:8: unknown key "shere". Did you mean "share"?')
    assert "Expected: kind, columns, sizes, share, extra" in text


def test_unknown_nested_key(tmp_path):
    text = complaint(tmp_path, GOOD.replace("  label:", "  lable:"))
    assert text.startswith('task.yaml:4: unknown key "columns.lable". Did you mean "label"?')
    assert "Expected: text, label" in text


def test_unknown_key_under_an_optional_config(tmp_path):
    text = complaint(tmp_path, GOOD + "extra:\n  text: a\n  labels: b\n")
    assert text.startswith('task.yaml:8: unknown key "extra.labels". Did you mean "label"?')


def test_missing_key_points_at_its_parent(tmp_path):
    text = complaint(tmp_path, "kind: text\ncolumns:\n  label: x\n")
    assert text.startswith('task.yaml:2: the key "columns.text" is missing')
    assert "add `text: ...`" in text


def test_wrong_value_says_what_was_found(tmp_path):
    assert complaint(tmp_path, GOOD + "share: 1.5\n").startswith('task.yaml:6: "share": Input should be less than 1 (found 1.5)')
    assert complaint(tmp_path, GOOD.replace("text\n", "video\n", 1)).startswith('task.yaml:1: "kind": ')


def test_wrong_item_of_a_list_has_its_own_line(tmp_path):
    text = complaint(tmp_path, GOOD.replace("sizes: [1, 2]", "sizes:\n- 1\n- many\n"))
    assert text.startswith('task.yaml:7: "sizes.1": ')
    assert "'many'" in text


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "42\n"])
def test_files_without_keys(tmp_path, text):
    assert complaint(tmp_path, text).startswith("task.yaml:1: expected keys and values")


def test_broken_yaml_names_the_line(tmp_path):
    assert complaint(tmp_path, "kind: text\ncolumns: [a, b\nsizes: 3\n").startswith("task.yaml:3: not valid YAML")


def test_not_text(tmp_path):
    assert "it is not UTF-8 text" in complaint(tmp_path, b"\xff\xfe\x00kind")


def test_yaml_cannot_run_code(tmp_path):
    assert "not valid YAML" in complaint(tmp_path, "kind: !!python/object/apply:os.system ['echo hello']\n")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(BadConfig, match="cannot read it: No such file"):
        read_yaml(tmp_path / "none.yaml", Recipe)
    with pytest.raises(BadConfig, match="cannot read it: Is a directory"):
        read_yaml(tmp_path, Recipe)


@given(
    kind=st.sampled_from(["text", "image"]),
    columns=st.builds(Columns, text=words, label=st.sampled_from(["a", "yes", "1"])),
    sizes=st.lists(st.integers(-1000, 1000), max_size=4).map(tuple),
    share=st.floats(0.01, 0.99),
)
def test_round_trip_through_json_and_yaml(tmp_path_factory, kind, columns, sizes, share):
    recipe = Recipe(kind=kind, columns=columns, sizes=sizes, share=share)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    path = tmp_path_factory.mktemp("round") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    assert read_yaml(path, Recipe) == recipe


def test_line_of_the_deepest_known_part():
    node = yaml.compose("a:\n  b:\n  - x\n  - c: 1\n", Loader=yaml.SafeLoader)
    assert line_of(node, ["a", "b", 1, "c"]) == 4
    assert line_of(node, ["a", "b", 7]) == 2
    assert line_of(node, ["a", "z"]) == 1
    assert line_of(node, ["z"]) is None
