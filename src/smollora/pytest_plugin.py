"""`pytest --smollora-data train.jsonl --smollora-model MODEL`: a team's data and the model that it
is for, a test item a check.

Loaded by pytest wherever smollora is installed, so this module imports nothing but pytest until one
of its options is given. Needs neither torch nor weights. Model and files are read once, when the
first item that needs them runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from smollora.team_checks import FileChecks, OpenedModel


class CheckFailed(Exception):
    """A check did not hold; its text is what the report shows."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, in a group of their own."""
    group = parser.getgroup("smollora", "tool-calling data and models")
    group.addoption(
        "--smollora-data",
        action="append",
        default=[],
        metavar="FILE",
        help="Rows that are trained: a file or folder; may be repeated.",
    )
    group.addoption(
        "--smollora-model",
        metavar="MODEL",
        help="The model that they are for: a folder, a Hub id, or pypi:NAME==VERSION.",
    )
    group.addoption(
        "--smollora-checks",
        choices=("all", "data", "model"),
        default="all",
        help="Which items: of the data, of the model's template and tokens, or both.",
    )
    group.addoption(
        "--smollora-format", metavar="NAME", help="Tool-call format; default: the template's."
    )
    group.addoption(
        "--smollora-max-length", type=int, metavar="N", help="Tokens of the longest row."
    )
    group.addoption(
        "--smollora-limit", type=int, metavar="N", help="Read at most N rows of each file."
    )
    group.addoption(
        "--smollora-may-reject",
        type=int,
        default=0,
        metavar="N",
        help="Unusable rows that each file may have.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Adds the items before -k and -m choose among them."""
    files, model = config.getoption("--smollora-data"), config.getoption("--smollora-model")
    if not files and not model:
        return
    if not model:
        raise pytest.UsageError("--smollora-data needs --smollora-model: rows are checked for one")
    from smollora.team_checks import MODEL_CHECKS, ROW_CHECKS

    wanted = config.getoption("--smollora-checks")
    subject = _Subject(config, model)
    made: list[tuple[str, Callable[[], None]]] = []
    if wanted != "data":
        made += [(f"model::{name}", subject.model_check(name)) for name in MODEL_CHECKS]
    if wanted != "model":
        for path in files:
            made += [(f"{path}::{name}", subject.row_check(path, name)) for name in ROW_CHECKS]
    items.extend(_items(session, made))


def _items(
    session: pytest.Session, made: list[tuple[str, Callable[[], None]]]
) -> Iterator[pytest.Item]:
    for name, ask in made:
        item: SmolloraItem = SmolloraItem.from_parent(
            session, name=name.rsplit("::", 1)[-1], nodeid=f"smollora::{name}"
        )
        item.ask = ask
        item.add_marker(pytest.mark.smollora)
        yield item


def pytest_configure(config: pytest.Config) -> None:
    """The mark, so that `-m smollora` runs these items alone and --strict-markers knows it."""
    config.addinivalue_line("markers", "smollora: a check of --smollora-data or --smollora-model")


class SmolloraItem(pytest.Item):
    """One check."""

    ask: Callable[[], None]

    def runtest(self) -> None:
        """Ask it."""
        self.ask()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_: Any) -> Any:
        """What was found, without a traceback, unless the fault is ours."""
        from smollora.errors import SmolloraError

        if isinstance(excinfo.value, CheckFailed | SmolloraError):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[str, None, str]:
        """How the failure's headline names it."""
        return "smollora", None, self.nodeid.removeprefix("smollora::").replace("::", ": ")


class _Subject:
    """The model and the files, each read when first asked for."""

    def __init__(self, config: pytest.Config, model: str) -> None:
        self._config = config
        self._source = model
        self._model: OpenedModel | Exception | None = None
        self._files: dict[str, FileChecks | Exception] = {}

    def model(self) -> OpenedModel:
        from smollora.errors import SmolloraError
        from smollora.team_checks import open_model

        if self._model is None:
            try:
                name = self._config.getoption("--smollora-format")
                self._model = open_model(self._source, format_name=name)
            except SmolloraError as error:
                self._model = error
        if isinstance(self._model, Exception):
            raise self._model
        return self._model

    def file(self, path: str) -> FileChecks:
        from smollora.errors import SmolloraError
        from smollora.team_checks import check_file

        option = self._config.getoption
        if path not in self._files:
            try:
                self._files[path] = check_file(
                    path,
                    self.model(),
                    max_length=option("--smollora-max-length"),
                    limit=option("--smollora-limit"),
                    may_reject=option("--smollora-may-reject"),
                )
            except SmolloraError as error:
                self._files[path] = error
        found = self._files[path]
        if isinstance(found, Exception):
            raise found
        return found

    def model_check(self, name: str) -> Callable[[], None]:
        def ask() -> None:
            checks = {check.name: check for check in self.model().checks}
            if name not in checks:
                pytest.skip("not tried: has_template failed")
            _hold(name, checks[name].ok, checks[name].detail)

        return ask

    def row_check(self, path: str, name: str) -> Callable[[], None]:
        def ask() -> None:
            check = next(each for each in self.file(path).checks if each.name == name)
            _hold(name, check.ok, check.detail)

        return ask


def _hold(name: str, ok: bool, detail: str) -> None:
    if not ok:
        raise CheckFailed(f"{name}: {detail}")
