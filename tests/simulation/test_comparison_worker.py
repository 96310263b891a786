"""The processes that compute runs."""

import multiprocessing
from pathlib import Path

from simulation.comparison.worker import Failed, Worker


def test_the_death_of_a_process_is_news_and_not_a_crash() -> None:
    worker = Worker()
    [child] = multiprocessing.active_children()
    child.kill()
    child.join()
    worker.begin("{}", Path())
    news = worker.news()
    assert isinstance(news, Failed)
    assert "ended with code -9" in news.reason
    worker.stop()


def test_a_run_that_cannot_be_is_news_and_the_process_goes_on() -> None:
    worker = Worker()
    worker.begin("{}", Path())
    news = worker.news()
    assert isinstance(news, Failed)
    assert news.reason.startswith("ValidationError")
    assert worker.is_alive
    worker.stop()
    assert not worker.is_alive
