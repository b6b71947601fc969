"""Nodes that compute losses for their run, by scorers that are fakes behind the real guard."""

import contextlib
from collections.abc import Iterator

from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.runs.directory import RunDir
from optima.serving.fleet import Fleet
from optima.serving.nodes import SCORE_PATH, Nodes
from optima.serving.scorer import Item, LossScorer
from optima.stages.context import Device, Environments
from optima.types import ModelRef
from tests.fakes import fake_environment, scored
from tests.serving.test_fleet import status_of, wait_until
from tests.serving.test_nodes import Node, Site
from tests.serving.test_nodes import first as first
from tests.serving.test_nodes import site as site  # fixtures

ITEMS: list[Item] = [("header", f"text {n}") for n in range(10_000)]


@contextlib.contextmanager
def scorer_on(site: Site, ref: ModelRef) -> Iterator[LossScorer]:
    recipe = site.recipe()
    env = fake_environment(site.folder / "own")
    logs = site.folder / "logs"
    with Nodes(site.board, recipe, site.folder / "run") as nodes:
        scorer = LossScorer(ref, recipe=recipe, devices=Devices("cpu"), env=env, log_dir=logs)
        scorer.nodes = nodes
        with scorer:
            yield scorer


def alone(site: Site, ref: ModelRef) -> list[float | None]:
    env = fake_environment(site.folder / "alone")
    with LossScorer(
        ref, recipe=site.recipe(), devices=Devices("cpu"), env=env, log_dir=site.folder / "logs"
    ) as scorer:
        return scorer.losses(ITEMS)


def scored_by(node: Node) -> int:
    return len(scored(Environment(node.prefix, node.prefix / "bin" / "python")))


def test_nodes_compute_their_share_of_the_losses_for_those_with_the_key(
    site: Site, first: ModelRef
) -> None:
    nodes = [site.start(), site.start()]
    with scorer_on(site, first) as scorer:
        wait_until(lambda: len(scorer.roster) == 2)
        for server in scorer.roster:
            assert status_of(server, None, path=SCORE_PATH) == 401
            assert status_of(server, "wrong", method="POST", path=SCORE_PATH) == 401
            assert status_of(server, server.api_key, path=SCORE_PATH) == 200
            assert status_of(server, server.api_key, path="/other") == 404
        expected, n_asked = alone(site, first), 0

        def have_shared() -> bool:  # a busy node may come too late for a share of one call
            nonlocal n_asked
            assert scorer.losses(ITEMS) == expected
            n_asked += len(ITEMS)
            return all(scored_by(node) > 0 for node in nodes)

        wait_until(have_shared)
        assert sum(scored_by(node) for node in nodes) < n_asked
    assert [node.wait() for node in nodes] == [0, 0]


def test_losses_that_a_lost_node_was_asked_for_are_asked_of_the_others(
    site: Site, first: ModelRef
) -> None:
    killed, silent = site.start(), site.start()
    with scorer_on(site, first) as scorer:
        wait_until(lambda: len(scorer.roster) == 2)
        killed.process.kill()
        below = [*silent.process.children(recursive=True), silent.process]
        for process in below:
            process.suspend()
        try:
            assert scorer.losses(ITEMS) == alone(site, first)
            assert len(scorer.roster) == 0
            assert scorer.losses(ITEMS[:10]) == alone(site, first)[:10]
        finally:
            for process in below:
                process.resume()
        wait_until(lambda: len(scorer.roster) == 1)
    assert silent.wait() == 0


def test_node_goes_from_serving_to_scoring_and_back(site: Site, first: ModelRef) -> None:
    node = site.start()
    with site.fleet(first) as fleet:
        wait_until(lambda: len(fleet.roster) == 2)
        nodes = fleet.nodes
        assert nodes is not None
        (process,) = node.servers()
        fleet.stop()
        logs, env = site.folder / "logs", fake_environment(site.folder / "own")
        scorer = LossScorer(
            first, recipe=fleet.recipe, devices=Devices("cpu"), env=env, log_dir=logs
        )
        scorer.nodes = nodes
        with scorer:
            wait_until(lambda: len(scorer.roster) == 1)
            assert not process.is_running()  # its memory is the scorer's now
        again = Fleet(
            first, recipe=fleet.recipe, devices=Devices("cpu"), env=env, log_dir=logs, nodes=nodes
        )
        with again:
            wait_until(lambda: len(again.roster) == 2)
    assert node.wait() == 0


def test_nodes_come_back_to_servers_that_stayed_while_they_scored(
    site: Site, first: ModelRef
) -> None:
    node = site.start()
    recipe = site.recipe(keep="stay")
    env = fake_environment(site.folder / "own")
    with (
        RunDir(site.folder / "run", recipe) as run,
        Device(recipe, Devices("cpu"), run, Environments(env, env)) as device,
    ):
        fleets = device.fleets(first)
        (fleet,) = fleets.fleets
        wait_until(lambda: len(fleet.roster) == 2)
        (process,) = node.servers()
        scorer = device.scorer(first)
        wait_until(lambda: len(scorer.roster) == 1)
        assert len(fleet.roster) == 1
        assert device.fleets(first) is fleets
        wait_until(lambda: len(fleet.roster) == 2)
        assert node.servers() == [process]  # it stayed on the node as well
        assert len(scorer.roster) == 0
        assert device.scorer(first) is scorer
        wait_until(lambda: len(scorer.roster) == 1)
    assert node.wait() == 0
