"""What processes tell each other: the end of a run, an evaluation that is added up, and that each is still there."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist
from vertebra.backbones._errors import UserError
from vertebra.engine import ranks
from vertebra.engine.stop import StopRequest
from vertebra.engine.watch import ENDED, GONE, Watch, grace_seconds


@pytest.fixture
def agreements(monkeypatch: pytest.MonkeyPatch) -> list[ranks.Agreement]:
    """Those of two processes, over one store."""
    store = dist.HashStore()
    monkeypatch.setattr(ranks.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(ranks, "get_world_size", lambda: 2)
    monkeypatch.setattr(ranks.Agreement, "_runs", 0)
    first = ranks.Agreement()
    monkeypatch.setattr(ranks.Agreement, "_runs", 0)
    return [first, ranks.Agreement()]


def test_processes_that_start_anew_agree_on_a_word_whatever_an_earlier_start_has_left() -> None:
    store = dist.HashStore()
    words: list[set[str]] = []
    for _ in range(3):
        found: dict[int, str] = {}
        threads = [
            threading.Thread(
                target=lambda rank=rank, found=found: found.update({rank: ranks._common_word(store, rank, 3)})
            )
            for rank in (2, 0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(found) == [0, 1, 2]
        words.append(set(found.values()))
    assert [len(word) for word in words] == [1, 1, 1]
    assert len(set.union(*words)) == 3


def test_a_process_that_nobody_asks_gives_up() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(RuntimeError, match=r"processes \[1\] have not asked"):
        ranks._common_word(store, 0, 2)


def test_the_first_proposal_of_an_end_holds_for_all(agreements: list[ranks.Agreement]) -> None:
    first, second = agreements
    assert first.end() is None
    second.propose(7, signal.SIGTERM)
    first.propose(6, signal.SIGINT)
    assert first.end() == second.end() == (7, signal.SIGTERM)


def test_an_evaluation_is_added_up_by_all_or_by_none(agreements: list[ranks.Agreement]) -> None:
    first, second = agreements
    found: dict[str, bool] = {}
    waiting = threading.Thread(target=lambda: found.update(first=first.all_have_evaluated(lambda: False)))
    waiting.start()
    assert second.all_have_evaluated(lambda: False)
    waiting.join(10)
    assert found == {"first": True}
    waiting = threading.Thread(target=lambda: found.update(first=first.all_have_evaluated(lambda: False)))
    waiting.start()
    second.leave_evaluation()
    waiting.join(10)
    assert found == {"first": False}


def test_who_waits_for_the_others_leaves_when_the_run_is_to_end(agreements: list[ranks.Agreement]) -> None:
    first, second = agreements
    assert not first.all_have_evaluated(lambda: True)
    assert not second.all_have_evaluated(lambda: False)


def test_who_waits_for_the_first_goes_when_it_is_released(agreements: list[ranks.Agreement]) -> None:
    first, second = agreements
    began = time.monotonic()
    second.wait_for_the_first(0.2)
    assert time.monotonic() - began >= 0.2
    first.release()
    second.wait_for_the_first(60)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("step", "group", "end"), [(4, 1, 5), (4, 2, 6), (5, 2, 6), (0, 3, 3)], ids=lambda value: str(value)
)
def test_the_end_that_is_proposed_is_one_that_no_process_can_have_passed(
    agreements: list[ranks.Agreement], step: int, group: int, end: int
) -> None:
    asked, other = StopRequest(), StopRequest()
    asked.agreement, other.agreement = agreements
    asked.signum = signal.SIGTERM
    assert not asked.due(step, group)
    due = [place for place in range(step, end + group + 1) if other.due(place, group)]
    assert due[0] == end
    assert other.signum == signal.SIGTERM


def test_who_hears_of_the_end_from_another_process_only_leaves_with_its_signal(
    agreements: list[ranks.Agreement],
) -> None:
    asked, other = StopRequest(), StopRequest()
    asked.agreement, other.agreement = agreements
    asked.signum = signal.SIGTERM
    assert asked.asked(4)
    asked.leave_evaluation()
    assert not other.all_have_evaluated(4)
    assert other.signum == signal.SIGTERM


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Watch, list[int]]]]:
    """`watch(store)` watches as the first of two processes, and gives the codes with which it would have left."""
    monkeypatch.setenv("VERTEBRA_PEER_SECONDS", "0.4")
    monkeypatch.setenv("VERTEBRA_GRACE_SECONDS", "0.3")
    started: list[Watch] = []

    def begin(store: dist.Store) -> tuple[Watch, list[int]]:
        codes: list[int] = []
        started.append(Watch(store, 0, 2, codes.append))
        started[-1].start()
        return started[-1], codes

    yield begin
    for each in started:
        each.end(ENDED)


def test_a_process_of_which_nothing_is_heard_is_missed(
    watch: Callable[..., tuple[Watch, list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, codes = watch(dist.HashStore())
    time.sleep(1)
    assert 2 in codes
    assert "nothing was heard of process 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "rank", "others"), [(2, 1, [0]), (3, 1, [0, 2]), (20, 15, [0, 1, 2, 3, 16, 17, 18, 19])], ids=str
)
def test_a_process_listens_to_few_others_and_never_to_itself(count: int, rank: int, others: list[int]) -> None:
    assert sorted(Watch(dist.HashStore(), rank, count).others) == others


class GoneStore:
    """One whose host is gone."""

    def clone(self) -> "GoneStore":
        """As a store's connection."""
        return self

    def set(self, key: str, value: str) -> None:
        """As every call of such a store."""
        raise RuntimeError("failed to send")


def test_a_process_whose_store_is_gone_does_not_wait_for_ever(
    watch: Callable[..., tuple[Watch, list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, codes = watch(GoneStore())
    time.sleep(1)
    assert 2 in codes
    assert "the one that keeps what all say has not answered" in capsys.readouterr().err


def test_a_process_that_has_ended_well_is_not_missed(watch: Callable[..., tuple[Watch, list[int]]]) -> None:
    store = dist.HashStore()
    store.set("alive 1", ENDED)
    _, codes = watch(store)
    time.sleep(1)
    assert codes == []


def test_no_process_is_missed_while_this_one_saves(watch: Callable[..., tuple[Watch, list[int]]]) -> None:
    store = dist.HashStore()
    store.set("alive 1", GONE)
    watching, codes = watch(store)
    with watching.patience(saving=True):
        time.sleep(1)
        assert codes == []
    time.sleep(0.5)
    assert codes


def test_an_error_of_ones_own_is_not_blamed_on_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    assert not ranks.a_peer_is_gone(gone), "there is one process only"
    monkeypatch.setattr(ranks, "several", lambda: True)
    assert ranks.a_peer_is_gone(gone)
    assert not ranks.a_peer_is_gone(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_time_of_grace_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_GRACE_SECONDS", "soon")
    with pytest.raises(UserError, match="'soon'; a number of seconds"):
        grace_seconds()
