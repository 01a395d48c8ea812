"""Tasks from a YAML file or from the user's own code."""

from __future__ import annotations

from pathlib import Path

from lissome.core.errors import BadTask
from lissome.core.task import Task


def load_task(ref: str, model_dir: Path | None = None) -> Task:
    """The Task that `ref` names: a YAML file, or `package.module:function` that returns a Task.

    model_dir: the model's folder, whose tokenizer a text task uses unless it names one. Without either a text task can be looked at
    (sizes, balance) but not batched. Raises BadConfig and BadTask, with file and line where there is one.
    """
    path = Path(ref).expanduser()
    if path.suffix.lower() in (".yaml", ".yml") or path.is_file():
        return _from_file(path, ref, model_dir)
    if ":" in ref and not path.exists():
        from lissome.data.tasks.factory import factory_task

        return factory_task(ref, model_dir)
    what = "is a folder" if path.is_dir() else "is neither a file nor package.module:function"
    raise BadTask(
        f'the task "{ref}" {what}', expected="a YAML file, or package.module:function that returns a Task", do="lissome task check FILE shows what a file says"
    )


def _from_file(path: Path, ref: str, model_dir: Path | None) -> Task:
    from lissome.data.tasks.config import ImageClassification, LanguageModelling, Tabular, read_task_file

    file = read_task_file(path)
    if isinstance(file.config, ImageClassification):
        from lissome.data.tasks.images import image_task

        return image_task(file, file.config, ref)
    if isinstance(file.config, Tabular):
        from lissome.data.tasks.tabular import tabular_task

        return tabular_task(file, file.config, ref)
    if isinstance(file.config, LanguageModelling):
        from lissome.data.tasks.language import language_task

        return language_task(file, file.config, ref, model_dir)
    from lissome.data.tasks.text import text_task

    return text_task(file, file.config, ref, model_dir)
