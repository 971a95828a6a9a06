"""The suite inside pytest: `pytest --pyargs hal.conformance --hal-backend=cpu`. `-k`, `-x` and pytest-xdist work.

Entry point `pytest11`, so that a vendor's own pytest run can add it. Loading this imports neither torch nor a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hal.conformance.result import Result

PROPERTY = "hal conformance"
"""Name of the property under which a test's report carries its result."""

LEDGER: pytest.StashKey[Ledger] = pytest.StashKey()
Verify = Callable[[str], "Result"]


class Ledger:
    """Names of planned cases, and results as reports bring them, from this process or from xdist's workers."""

    def __init__(self) -> None:
        self.planned: dict[str, None] = {}
        self.results: list[Result] = []

    def plan(self, nodeids: Iterable[str]) -> None:
        """Note the cases among test ids."""
        for nodeid in nodeids:
            place, bracket, rest = nodeid.partition("::test_case[")
            if bracket and place.endswith("test_backend.py"):
                self.planned[rest[:-1]] = None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hal", "hal conformance")
    group.addoption("--hal-backend", help="backend to verify, as in HAL_BACKEND: cpu, cuda@emulated, reference")
    group.addoption("--hal-kernel", default="*", help="only kernels whose id matches")
    group.addoption("--hal-quick", action="store_true", help="a few samples of each kind")
    group.addoption("--hal-limit", type=float, default=120.0, help="seconds that one case may take")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEDGER] = Ledger()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "hal_case" not in metafunc.fixturenames:
        return
    from hal.conformance.verify import Run
    from hal.errors import HalError

    option = metafunc.config.getoption
    backend = option("--hal-backend")
    if not backend:
        pytest.exit("hal.conformance: name what to verify, for example --hal-backend=cpu", 4)
    try:
        run = Run.plan(backend, kernel=option("--hal-kernel"), quick=option("--hal-quick"), limit=option("--hal-limit"))
    except HalError as error:
        pytest.exit(str(error), 4)
    names = [name for listed in run.kernels for name in listed.cases]
    metafunc.parametrize("hal_case", names, ids=names)


@pytest.fixture(scope="session")
def hal_verify(request: pytest.FixtureRequest) -> Iterator[Verify]:
    """Runs a case by name, in the worker process of its kernel."""
    from datetime import date

    from hal.conformance.expected import FILE, booked, expectations
    from hal.conformance.worker import Worker
    from hal.evidence import package_of

    option = request.config.getoption
    backend, limit = option("--hal-backend"), option("--hal-limit")
    package = package_of(backend.partition("@")[0].partition(":")[0])
    expected = expectations(package / FILE) if package else ()
    workers: dict[str, Worker] = {}

    def verify(name: str) -> Result:
        kernel = name.split("/")[1]
        if kernel not in workers:
            while workers:  # one at a time: cases come kernel by kernel
                workers.popitem()[1].close()
            workers[kernel] = Worker(backend, kernel, limit)
        return booked(workers[kernel].run(name), expected, date.today())

    yield verify
    for worker in workers.values():
        worker.close()


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[LEDGER].plan(item.nodeid for item in session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    node.config.stash[LEDGER].plan(ids)


class _Reports:
    """Collects results from reports; registered per session, because reports do not know their configuration."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from hal.conformance.result import Result

        if report.when == "call":
            words = dict(report.user_properties).get(PROPERTY)
            if isinstance(words, dict):
                self.ledger.results.append(Result(**words))


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_Reports(session.config.stash[LEDGER]), "hal conformance reports")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    from hal.conformance.account import Account
    from hal.conformance.result import Listed

    ledger = config.stash[LEDGER]
    if not ledger.planned:
        return
    kernels: dict[tuple[str, str], list[str]] = {}
    for name in ledger.planned:
        contract, kernel = name.split("/")[:2]
        kernels.setdefault((contract, kernel), []).append(name)
    listed = [Listed(kernel, contract, 0, 0, tuple(names)) for (contract, kernel), names in kernels.items()]
    account = Account.of(listed, ledger.results)
    terminalreporter.section("hal conformance")
    for line in account.lines:
        terminalreporter.write_line(f"{line.kernel}: {line.words}")
    terminalreporter.write_line(account.words)
