"""Whether this server takes requests: one answer for all who ask."""

import pytest

from engine.contract.status import ModelStatus, Phase
from server.http.lifecycle import Lifecycle


def status(phase, progress=None, model="m"):
    return ModelStatus(model=model, phase=phase, progress=progress)


def test_serving_only_when_every_model_that_can_is_ready():
    lifecycle = Lifecycle(30.0)
    assert lifecycle.readiness([status(Phase.READY), status(Phase.READY)]).serving
    for phase in set(Phase) - {Phase.READY, Phase.SLEEPING, Phase.FAILED, Phase.DRAINING}:
        readiness = lifecycle.readiness([status(Phase.READY), status(phase, 0.5)])
        assert not readiness.serving
        assert (readiness.phase, readiness.progress) == (phase, 0.5)


def test_a_server_whose_models_sleep_or_wake_serves():
    waking = ModelStatus(model="m", phase=Phase.LOADING, progress=0.5, waking=True)
    for others in ([], [status(Phase.READY)], [status(Phase.SLEEPING)]):
        assert Lifecycle(30.0, require_all=True).readiness([waking, *others]).serving


def test_a_server_without_statuses_does_not_serve():
    assert not Lifecycle(30.0).readiness([]).serving


@pytest.mark.parametrize(
    ("phases", "worst"),
    [
        ((Phase.LOADING, Phase.FAILED, Phase.READY), Phase.LOADING),
        ((Phase.FAILED, Phase.READY), Phase.READY),
        ((Phase.FAILED, Phase.RESTARTING), Phase.RESTARTING),
        ((Phase.FAILED, Phase.FAILED), Phase.FAILED),
        ((Phase.WARMING_UP, Phase.DOWNLOADING), Phase.DOWNLOADING),
        ((Phase.READY, Phase.RESTARTING), Phase.RESTARTING),
    ],
)
def test_the_phase_is_that_of_the_model_furthest_from_serving(phases, worst):
    assert Lifecycle(30.0).readiness([status(phase) for phase in phases]).phase is worst


def test_all_models_may_be_required():
    lifecycle = Lifecycle(30.0, require_all=True)
    readiness = lifecycle.readiness([status(Phase.READY), status(Phase.FAILED)])
    assert readiness.phase is Phase.FAILED
    assert lifecycle.readiness([status(Phase.READY)]).serving


def test_draining_starts_once_and_counts_down():
    now = [100.0]
    lifecycle = Lifecycle(30.0, clock=lambda: now[0])
    assert not lifecycle.draining
    assert lifecycle.remaining_drain_s() == 30.0
    lifecycle.begin_drain()
    now[0] += 10
    lifecycle.begin_drain()
    assert lifecycle.draining
    assert lifecycle.remaining_drain_s() == 20.0
    now[0] += 100
    assert lifecycle.remaining_drain_s() == 0.0
    assert lifecycle.readiness([status(Phase.READY)]).phase is Phase.DRAINING


def test_a_drain_can_be_cut_short():
    lifecycle = Lifecycle(30.0)
    assert not lifecycle.cut_short
    lifecycle.cut_drain_short()
    assert lifecycle.draining
    assert lifecycle.cut_short
    assert lifecycle.remaining_drain_s() == 0.0


def test_models_that_come_and_go_meanwhile_do_not_count():
    ready, failed = status(Phase.READY), status(Phase.FAILED)
    joining = ModelStatus(model="new", phase=Phase.LOADING, joining=True)
    leaving = status(Phase.DRAINING)
    for lifecycle in (Lifecycle(30.0), Lifecycle(30.0, require_all=True)):
        assert lifecycle.readiness([ready, joining, leaving]).serving
        assert lifecycle.readiness([joining]).phase is Phase.LOADING
        assert lifecycle.readiness([leaving]).phase is Phase.STOPPED
        assert not lifecycle.readiness([status(Phase.RESTARTING), joining]).serving
    assert Lifecycle(30.0).readiness([failed, joining]).phase is Phase.LOADING
    assert Lifecycle(30.0, require_all=True).readiness([failed, joining]).phase is Phase.FAILED
