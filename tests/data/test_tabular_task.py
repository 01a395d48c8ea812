"""Tables: encoding with train statistics, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lissome.core.errors import BadConfig, BadInput, BadTask
from lissome.core.task import SPLITS
from lissome.data import load_task

HEADER = "age,city,id,income\n"


def rows(n: int = 200) -> str:
    return HEADER + "".join(f"{20 + i * 0.25},{['Rome', 'Oslo', 'Bern'][i % 3]},{i},{'high' if i % 2 else 'low'}\n" for i in range(n))


def task_of(write, text: str = "", data: str | None = None):
    write("a.csv", rows() if data is None else data)
    return load_task(str(write("t.yaml", f"kind: tabular\ndata: a.csv\nlabel: income\nignore: [id]\n{text}")))


def refused(write, message: str, text: str = "", data: str | None = None, kind: type[BadInput] = BadTask) -> str:
    with pytest.raises(kind, match=message) as caught:
        task_of(write, text, data)
    return str(caught.value)


def test_numbers_are_standardised_with_train_and_categories_become_columns(write) -> None:
    task = task_of(write)
    assert task.classes == ("high", "low")
    train = task.collate(task.splits["train"].inputs, "longest")["features"]
    assert train.shape == (120, 4)
    assert train.dtype == np.float32
    assert abs(train[:, 0].mean()) < 1e-5
    assert abs(train[:, 0].std() - 1) < 1e-5
    assert set(train[:, 1:].sum(axis=1)) == {1.0}
    test = task.collate(task.splits["test"].inputs, "longest")["features"]
    assert abs(test[:, 0].mean()) > 1e-4  # its own statistics were not used
    assert "1 numeric and 1 categorical columns give 4 features" in task.notes


def test_a_row_from_the_command_line(write) -> None:
    task = task_of(write)
    assert task.parse is not None
    by_name = task.parse('{"city": "Oslo", "age": 30, "other": 1}')
    assert (by_name == task.parse("30, Oslo")).all()
    assert by_name[1:].tolist() == [0, 1, 0]  # Bern, Oslo, Rome
    assert task.parse("30,Atlantis")[1:].tolist() == [0, 0, 0]
    for text, message in {
        '{"age": 30}': 'the column "city" is missing',
        "30": "the row has 1 cells, the task 2 columns",
        "old,Oslo": '"old" in the column "age" is not a number',
        "nan,Oslo": "is not a number",
        "{": "not valid JSON",
    }.items():
        with pytest.raises(BadInput, match=message):
            task.parse(text)


def test_regression_scores_by_absolute_error(write) -> None:
    data = HEADER + "".join(f"{i % 50},Rome,{i},{i * 2.5}\n" for i in range(300))
    task = task_of(write, "target: regression\nnumeric: [age]\ncategorical: []\n", data)
    assert not task.exact
    assert task.classes == ()
    assert task.score(np.array([[1.0], [5.0]]), np.array([3.0, 5.0])).tolist() == [-2.0, 0.0]
    means = [task.splits[name].targets.mean() for name in SPLITS]
    assert max(means) - min(means) < 100  # of 0..750: split evenly over the range


def test_rows_with_the_same_features_stay_together(write) -> None:
    data = HEADER + "".join(f"{i % 40},Rome,{i},{'high' if i % 2 else 'low'}\n" for i in range(400))
    task = task_of(write, data=data)
    seen: dict[bytes, str] = {}
    for name in SPLITS:
        for row in task.splits[name].inputs:
            assert seen.setdefault(row.tobytes(), name) == name


@pytest.mark.parametrize("bad", ["", " ", "nan", "NaN", "inf"])
def test_missing_numbers_are_named_by_line(write, bad: str) -> None:
    data = rows().replace("\n21.0,", f"\n{bad},").replace("\n22.5,", f"\n{bad},")
    text = refused(write, r'a.csv lines 6, 12: 2 cells of the numeric column "age" are missing or not finite', data=data)
    assert "`ignore:`" in text


def test_stray_text_in_a_numeric_column(write) -> None:
    data = HEADER + "".join(f"{i},Rome,{i},{'high' if i % 2 else 'low'}\n" for i in range(300)).replace("\n7,", "\n?,")
    refused(write, r'the column "age" has 300 different values, too many for a category. Only 1 of them are no numbers, as \'\?\'', data=data)
    refused(write, r'a.csv line 9: 1 cells of the numeric column "age" .*the first is \'\?\'', "numeric: [age]\n", data)


def test_columns_that_are_not_there(write) -> None:
    refused(write, r't.yaml:5: numeric column "aeg" is not in a.csv. Did you mean "age"\?', "numeric: [aeg]\n")
    refused(write, r"t.yaml:5: unknown key \"catgorical\". Did you mean \"categorical\"\?", "catgorical: [city]\n", kind=BadConfig)
    refused(write, "the label column .income. is among the features", "categorical: [income]\n")
    refused(write, "is both numeric and categorical", "numeric: [age]\ncategorical: [age]\n")


def test_a_continuous_label_asks_for_regression(write) -> None:
    data = HEADER + "".join(f"{i % 50},Rome,{i},{i * 2.5}\n" for i in range(300))
    assert "target: regression" in refused(write, 'label column "income" has 300 different values', data=data)


def test_ragged_rows(write) -> None:
    refused(write, r"a.csv:4: this row has 3 cells, the header has 4", data=rows().replace("20.5,Bern,2,", "20.5,2,"))


def test_a_test_file_without_a_feature(write) -> None:
    write("b.csv", "age,income\n1,high\n2,low\n")
    write("a.csv", rows())
    with pytest.raises(BadTask, match=r'feature column "city" is not in b.csv'):
        load_task(str(write("t.yaml", "kind: tabular\nsplits: {train: a.csv, test: b.csv}\nlabel: income\nignore: [id]\n")))
