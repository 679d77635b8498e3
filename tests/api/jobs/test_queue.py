"""The queue: who gets which job, for how long, how often, and what survives."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from nvpstore.api.jobs.job import Job, Lease
from nvpstore.api.jobs.queue import KEPT_PROGRESS, JobQueue, KeyReused, LeaseLost, QueueFull
from nvpstore.errors import NotFound, StoreError, UsageError
from tests.api.jobs.conftest import Clock

ERROR = {"title": "Service Unavailable", "detail": "the store failed", "status": 503}


def submitted(queue: JobQueue, name: str = "a", **options: object) -> Job:
    return queue.submit("add", {"name": name}, owner="somebody", **options)[0]  # type: ignore[arg-type]


def claimed(queue: JobQueue, worker: str = "worker") -> Lease:
    lease = queue.claim(worker, ["add"])
    assert lease is not None
    return lease


def told(queue: JobQueue, job: Job) -> list[tuple[str, object]]:
    """What happened to a job, in short."""
    return [
        (event.kind, event.data.get("state") or event.data.get("text") or event.data.get("done"))
        for event in queue.events(job.id)
    ]


class TestOrder:
    def test_the_oldest_comes_first(self, queue: JobQueue) -> None:
        jobs = [submitted(queue, str(number)) for number in range(20)]
        assert [claimed(queue).job.id for _ in jobs] == [job.id for job in jobs]

    def test_a_higher_priority_comes_before_what_is_older(self, queue: JobQueue) -> None:
        first, second = submitted(queue, "low"), submitted(queue, "high", priority=1)
        assert [claimed(queue).job.id for _ in range(2)] == [second.id, first.id]

    def test_only_the_kinds_that_are_asked_for_are_claimed(self, queue: JobQueue) -> None:
        queue.submit("query", {}, owner="somebody")
        assert queue.claim("worker", ["add", "fit"]) is None
        lease = queue.claim("worker", ["query"])
        assert lease is not None
        assert lease.job.kind == "query"

    def test_nothing_waits_in_an_empty_queue(self, queue: JobQueue) -> None:
        assert queue.claim("worker", ["add"]) is None

    def test_two_processes_never_get_the_same_job(self, queue: JobQueue, tmp_path: Path) -> None:
        jobs = {submitted(queue, str(number)).id for number in range(100)}
        program = (
            "import sys; from pathlib import Path\n"
            "from nvpstore.api.jobs.queue import JobQueue\n"
            "queue = JobQueue(Path(sys.argv[1]))\n"
            "while (lease := queue.claim(sys.argv[2], ['add'])) is not None:\n"
            "    print(lease.job.id); queue.finish(lease, {})\n"
        )
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(queue.path), str(number)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        done = [line for worker in workers for line in worker.communicate(timeout=120)[0].split()]
        assert [worker.returncode for worker in workers] == [0] * 4
        assert len(done) == len(jobs)
        assert set(done) == jobs


class TestLease:
    def test_a_claimed_job_is_nobody_elses(self, queue: JobQueue) -> None:
        submitted(queue)
        lease = claimed(queue, "first")
        assert queue.claim("second", ["add"]) is None
        assert (lease.job.state, lease.job.worker, lease.attempt) == ("running", "first", 1)

    def test_one_that_runs_out_goes_to_the_next(self, queue: JobQueue, clock: Clock) -> None:
        job = submitted(queue)
        claimed(queue, "first")
        clock.now += queue.lease_seconds + 1
        assert queue.claim("second", ["add"]) is None  # it waits a little after each failure
        clock.now += 60
        again = claimed(queue, "second")
        assert (again.job.id, again.attempt, again.job.failures) == (job.id, 2, 1)

    def test_renewed_it_does_not_run_out(self, queue: JobQueue, clock: Clock) -> None:
        submitted(queue)
        lease = claimed(queue)
        for _ in range(10):
            clock.now += queue.lease_seconds - 1
            assert queue.renew(lease)
        assert queue.claim("second", ["add"]) is None

    def test_one_that_ran_out_but_was_not_taken_can_be_renewed(self, queue: JobQueue, clock: Clock) -> None:
        submitted(queue)
        lease = claimed(queue)
        clock.now += queue.lease_seconds + 1
        assert queue.renew(lease)

    def test_who_lost_it_changes_nothing_any_more(self, queue: JobQueue, clock: Clock) -> None:
        job = submitted(queue)
        old = claimed(queue, "first")
        clock.now += 1_000
        queue.claim("second", ["add"])
        clock.now += 1_000
        new = claimed(queue, "second")
        for change in (
            lambda: queue.renew(old),
            lambda: queue.goes_on(old),
            lambda: queue.report(old, {"done": 9}),
            lambda: queue.log(old, "late"),
            lambda: queue.finish(old, {"by": "first"}),
            lambda: queue.fail(old, ERROR, retry=False),
            lambda: queue.cancelled(old),
            lambda: queue.release(old),
        ):
            with pytest.raises(LeaseLost, match="attempt 1 of first"):
                change()
        queue.finish(new, {"by": "second"})
        assert queue.get(job.id).result == {"by": "second"}

    def test_a_worker_of_the_same_name_does_not_hold_an_earlier_lease(self, queue: JobQueue) -> None:
        submitted(queue)
        old = claimed(queue)
        queue.release(old)
        claimed(queue)
        with pytest.raises(LeaseLost):
            queue.finish(old, {})

    def test_what_ended_cannot_be_ended_again(self, queue: JobQueue) -> None:
        submitted(queue)
        lease = claimed(queue)
        queue.finish(lease, {})
        with pytest.raises(LeaseLost):
            queue.fail(lease, ERROR, retry=True)

    def test_a_worker_that_is_known_to_have_ended_loses_its_jobs_at_once(
        self, queue: JobQueue, clock: Clock
    ) -> None:
        mine, others = submitted(queue, "mine"), submitted(queue, "other")
        claimed(queue, "dead")
        claimed(queue, "living")
        queue.lost("dead", "was ended by SIGKILL")
        assert (queue.get(mine.id).state, queue.get(others.id).state) == ("queued", "running")
        assert ("log", "attempt 1 failed: worker dead was ended by SIGKILL during attempt 1") in told(
            queue, mine
        )
        clock.now += 60
        assert claimed(queue, "next").job.id == mine.id

    def test_a_job_that_kills_its_workers_fails_in_the_end(self, queue: JobQueue, clock: Clock) -> None:
        job = submitted(queue)
        for _ in range(3):
            assert claimed(queue).job.id == job.id
            clock.now += 1_000
            queue.claim("nobody", ["query"])
            clock.now += 1_000
        ended = queue.get(job.id)
        assert (ended.state, ended.failures) == ("failed", 3)
        assert ended.error is not None
        assert ended.error["status"] == 500
        assert "during attempt 3" in ended.error["detail"]


class TestFailures:
    def test_without_a_retry_it_has_failed(self, queue: JobQueue) -> None:
        job = submitted(queue)
        ended = queue.fail(claimed(queue), ERROR, retry=False)
        assert ended == queue.get(job.id)
        assert (ended.state, ended.error, ended.worker) == ("failed", ERROR, None)
        assert queue.claim("worker", ["add"]) is None

    def test_retries_wait_longer_each_time(self, queue: JobQueue, clock: Clock) -> None:
        submitted(queue)
        lease = claimed(queue)
        for wait in (5, 10):
            assert queue.fail(lease, ERROR, retry=True).state == "queued"
            clock.now += wait - 1
            assert queue.claim("worker", ["add"]) is None
            clock.now += 1
            lease = claimed(queue)

    def test_so_many_failures_and_no_more(self, queue: JobQueue, clock: Clock) -> None:
        job = submitted(queue)
        states = []
        for _ in range(3):
            states.append(queue.fail(claimed(queue), ERROR, retry=True).state)
            clock.now += 1_000
        assert states == ["queued", "queued", "failed"]
        assert queue.get(job.id).error == ERROR

    def test_given_back_it_is_no_failure_and_waits_for_nothing(self, queue: JobQueue) -> None:
        job = submitted(queue)
        for attempt in range(1, 11):
            lease = claimed(queue)
            assert lease.attempt == attempt
            assert queue.release(lease).state == "queued"
        assert queue.get(job.id).failures == 0

    def test_figures_that_are_no_json_are_refused_when_asked(self, queue: JobQueue) -> None:
        with pytest.raises(UsageError, match="finite"):
            queue.submit("query", {"params": [float("nan")]}, owner="somebody")
        assert queue.jobs() == []

    def test_half_a_surrogate_pair_is_kept_as_it_is(self, queue: JobQueue) -> None:
        job = submitted(queue, "\ud800")
        assert queue.get(job.id).request == {"name": "\ud800"}


class TestCancel:
    def test_a_waiting_job_is_cancelled_at_once(self, queue: JobQueue) -> None:
        job = submitted(queue)
        assert queue.cancel(job.id).state == "cancelled"
        assert queue.claim("worker", ["add"]) is None

    def test_a_running_one_when_its_worker_looks(self, queue: JobQueue) -> None:
        job = submitted(queue)
        lease = claimed(queue)
        assert queue.goes_on(lease)
        asked = queue.cancel(job.id)
        assert (asked.state, asked.cancelling) == ("running", True)
        assert not queue.goes_on(lease)
        assert not queue.renew(lease)
        queue.cancelled(lease)
        assert queue.get(job.id).state == "cancelled"

    def test_asked_twice_it_is_told_once(self, queue: JobQueue) -> None:
        job = submitted(queue)
        claimed(queue)
        queue.cancel(job.id)
        queue.cancel(job.id)
        assert [text for _, text in told(queue, job)].count("asked to stop") == 1

    def test_of_one_that_ended_it_changes_nothing(self, queue: JobQueue) -> None:
        job = submitted(queue)
        queue.finish(claimed(queue), {"n": 1})
        assert queue.cancel(job.id) == queue.get(job.id)
        assert queue.get(job.id).state == "done"

    @pytest.mark.parametrize("end", ["failed", "given back", "lost", "run out"])
    def test_it_is_not_begun_again(self, queue: JobQueue, clock: Clock, end: str) -> None:
        job = submitted(queue)
        lease = claimed(queue)
        queue.cancel(job.id)
        if end == "failed":
            queue.fail(lease, ERROR, retry=True)
        elif end == "given back":
            queue.release(lease)
        elif end == "lost":
            queue.lost(lease.worker, "ended")
        clock.now += 1_000
        assert queue.claim("next", ["add"]) is None
        assert queue.get(job.id).state == "cancelled"

    def test_an_unknown_one_is_not_found(self, queue: JobQueue) -> None:
        with pytest.raises(NotFound, match="no job 'x'"):
            queue.cancel("x")


class TestIdempotency:
    def test_the_same_key_and_request_are_the_same_job(self, queue: JobQueue) -> None:
        first, new = queue.submit("add", {"a": 1, "b": 2}, owner="me", idempotency_key="k")
        again, newer = queue.submit("add", {"b": 2, "a": 1}, owner="me", idempotency_key="k")
        assert (new, newer) == (True, False)
        assert again == first
        assert len(queue.jobs()) == 1

    def test_another_request_under_it_is_refused(self, queue: JobQueue) -> None:
        first, _ = queue.submit("add", {"a": 1}, owner="me", idempotency_key="k")
        for kind, request in (("add", {"a": 2}), ("ingest", {"a": 1})):
            with pytest.raises(KeyReused, match=first.id):
                queue.submit(kind, request, owner="me", idempotency_key="k")  # type: ignore[arg-type]

    def test_what_is_compared_may_be_less_than_the_request(self, queue: JobQueue) -> None:
        same = {"sha256": "ab"}
        first, _ = queue.submit("add", {"file": "x"}, owner="me", idempotency_key="k", identity=same)
        again, new = queue.submit("add", {"file": "y"}, owner="me", idempotency_key="k", identity=same)
        assert (again.id, new) == (first.id, False)
        with pytest.raises(KeyReused):
            queue.submit("add", {"file": "x"}, owner="me", idempotency_key="k", identity={"sha256": "cd"})

    def test_others_keys_are_others(self, queue: JobQueue) -> None:
        first, _ = queue.submit("add", {"a": 1}, owner="me", idempotency_key="k")
        other, new = queue.submit("add", {"a": 2}, owner="you", idempotency_key="k")
        assert new
        assert other.id != first.id

    def test_it_also_holds_when_the_job_has_ended(self, queue: JobQueue) -> None:
        queue.submit("add", {"a": 1}, owner="me", idempotency_key="k")
        queue.finish(claimed(queue), {"n": 1})
        again, new = queue.submit("add", {"a": 1}, owner="me", idempotency_key="k")
        assert (again.state, new) == ("done", False)

    def test_it_holds_where_the_queue_is_full(self, tmp_path: Path) -> None:
        queue = JobQueue(tmp_path / "jobs.sqlite", most_waiting=1)
        queue.submit("add", {"a": 1}, owner="me", idempotency_key="k")
        assert not queue.submit("add", {"a": 1}, owner="me", idempotency_key="k")[1]


class TestLimits:
    def test_no_more_wait_than_may(self, tmp_path: Path) -> None:
        queue = JobQueue(tmp_path / "jobs.sqlite", most_waiting=2)
        for name in "ab":
            submitted(queue, name)
        with pytest.raises(QueueFull, match="2 jobs wait") as refused:
            submitted(queue, "c")
        assert refused.value.retry_after_seconds > 0
        claimed(queue)  # those that run do not wait
        submitted(queue, "c")

    def test_of_a_long_jobs_progress_the_last_stays(self, queue: JobQueue) -> None:
        job = submitted(queue)
        lease = claimed(queue)
        for done in range(KEPT_PROGRESS + 50):
            queue.report(lease, {"done": done})
        queue.log(lease, "a line")
        kept = [event.data["done"] for event in queue.events(job.id) if event.kind == "progress"]
        assert kept == list(range(50, KEPT_PROGRESS + 50))
        assert told(queue, job)[:2] == [("state", "queued"), ("state", "running")]
        assert queue.get(job.id).progress == {"done": KEPT_PROGRESS + 49}


class TestEvents:
    def test_they_come_in_the_order_in_which_things_happened(self, queue: JobQueue, clock: Clock) -> None:
        job, other = submitted(queue), submitted(queue, "other")
        lease = claimed(queue)
        queue.log(lease, "begun")
        queue.report(lease, {"done": 1})
        queue.fail(lease, ERROR, retry=True)
        clock.now += 60
        queue.finish(claimed(queue), {"n": 1})
        assert told(queue, job) == [
            ("state", "queued"),
            ("state", "running"),
            ("log", "begun"),
            ("progress", 1),
            ("log", "attempt 1 failed: the store failed"),
            ("state", "queued"),
            ("state", "running"),
            ("state", "done"),
        ]
        numbers = [event.number for event in queue.events(job.id)]
        assert numbers == sorted(set(numbers))
        assert queue.events(job.id)[-1].data["result"] == {"n": 1}
        assert told(queue, other) == [("state", "queued")]

    def test_a_reader_goes_on_where_it_was(self, queue: JobQueue) -> None:
        job = submitted(queue)
        lease = claimed(queue)
        seen = queue.events(job.id)[-1].number
        queue.log(lease, "more")
        assert [event.data for event in queue.events(job.id, after=seen)] == [{"text": "more"}]
        assert queue.events(job.id, after=seen + 1) == []

    def test_those_of_all_jobs_are_one_stream(self, queue: JobQueue) -> None:
        assert queue.newest_event() == 0
        first, second = submitted(queue, "a"), submitted(queue, "b")
        assert [event.job for event in queue.events(None)] == [first.id, second.id]
        assert queue.newest_event() == queue.events(None)[-1].number

    def test_an_answer_is_bounded(self, queue: JobQueue) -> None:
        job = submitted(queue)
        lease = claimed(queue)
        for number in range(5):
            queue.log(lease, str(number))
        assert len(queue.events(job.id, limit=3)) == 3


class TestLists:
    def test_the_newest_first_page_by_page(self, queue: JobQueue) -> None:
        ids = sorted((submitted(queue, str(n)).id for n in range(7)), reverse=True)
        pages, before = [], None
        while page := queue.jobs(limit=3, before=before):
            before = page[-1].id
            pages.append([job.id for job in page])
        assert pages == [ids[:3], ids[3:6], ids[6:]]

    def test_by_owner_state_and_kind(self, queue: JobQueue) -> None:
        mine = submitted(queue)
        queue.submit("query", {}, owner="else")
        assert [job.id for job in queue.jobs(owner="somebody")] == [mine.id]
        assert [job.kind for job in queue.jobs(kind="query", state="queued")] == ["query"]
        assert queue.jobs(state="done") == []

    def test_counts_are_by_kind_and_state(self, queue: JobQueue) -> None:
        for name in "abc":
            submitted(queue, name)
        claimed(queue)
        queue.submit("query", {}, owner="somebody")
        assert queue.counts() == {("add", "queued"): 2, ("add", "running"): 1, ("query", "queued"): 1}

    def test_old_jobs_are_forgotten_with_their_events(self, queue: JobQueue, clock: Clock) -> None:
        old, running, waiting = (submitted(queue, name) for name in "abc")
        queue.finish(claimed(queue), {})
        claimed(queue)
        clock.now += 100
        assert [job.id for job in queue.forget(older_than_seconds=200)] == []
        assert [job.id for job in queue.forget(older_than_seconds=50)] == [old.id]
        assert queue.events(old.id) == []
        with pytest.raises(NotFound):
            queue.get(old.id)
        assert {job.id for job in queue.jobs()} == {running.id, waiting.id}


class TestTheFile:
    def test_another_process_sees_the_same_jobs(self, queue: JobQueue) -> None:
        job = submitted(queue)
        assert JobQueue(queue.path).get(job.id) == job

    def test_many_may_begin_it_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "jobs.sqlite"
        program = (
            "import sys; from pathlib import Path\n"
            "from nvpstore.api.jobs.queue import JobQueue\n"
            "JobQueue(Path(sys.argv[1])).submit('add', {}, owner='x')\n"
        )
        started = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(6)]
        assert [process.wait(60) for process in started] == [0] * 6
        assert len(JobQueue(path).jobs()) == 6

    def test_what_was_accepted_survives_kill_9(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.sqlite"
        program = (
            "import sys; from pathlib import Path\n"
            "from nvpstore.api.jobs.queue import JobQueue\n"
            "queue = JobQueue(Path(sys.argv[1]), most_waiting=10**6)\n"
            "while True:\n"
            "    job, _ = queue.submit('add', {'text': 'x' * 5000}, owner='x')\n"
            "    print(job.id, flush=True)\n"
            "    lease = queue.claim('w', ['add'])\n"
            "    queue.report(lease, {'done': 1})\n"
            "    queue.finish(lease, {})\n"
        )
        for wanted in (1, 7, 30):
            writer = subprocess.Popen(
                [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
            )
            assert writer.stdout is not None
            accepted = [writer.stdout.readline().strip() for _ in range(wanted)]
            os.kill(writer.pid, signal.SIGKILL)
            accepted += writer.communicate()[0].split()
            queue = JobQueue(path)
            assert set(accepted) <= {job.id for job in queue.jobs(limit=10**6)}
            con = sqlite3.connect(path)
            assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            con.close()

    def test_a_file_that_is_none_is_an_error_of_the_store(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.sqlite"
        path.write_bytes(b"no database" * 1000)
        with pytest.raises(StoreError, match="cannot be used"):
            JobQueue(path)

    def test_a_folder_that_cannot_be_made_is_too(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot keep jobs"):
            JobQueue(tmp_path / "file" / "jobs.sqlite")

    def test_a_full_disk_changes_nothing(self, queue: JobQueue) -> None:
        job = submitted(queue)
        with sqlite3.connect(queue.path) as con:
            (pages,) = con.execute("PRAGMA page_count").fetchone()
        program = (
            "import sys, resource, json; from pathlib import Path\n"
            "from nvpstore.api.jobs.queue import JobQueue\n"
            "from nvpstore.errors import StoreError\n"
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "queue = JobQueue(Path(sys.argv[1]))\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
            "try: queue.submit('add', {'text': 'x' * 10**6}, owner='x')\n"
            "except StoreError as error: print(json.dumps(str(error)))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(queue.path), str(pages * 4096)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "cannot be used" in json.loads(done.stdout)
        assert queue.jobs() == [job]
        submitted(queue, "after")
