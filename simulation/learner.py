"""A node's work: train on its examples from a version, and put what it learnt into the messages that a node sends.

All nodes share one base model; a node is its examples, a counter, a rank and, in FedSA-LoRA, a factor of its own.
Nothing here knows time or what other nodes do.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from base_model.descent import TrainingResult
from base_model.evaluation import losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.settings import TrainingConfig
from base_model.training import train
from coordinator.state import FederationConfig
from coordinator.updates import GlobalAdapter
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import MAX_CHUNK_SIZE, CodecId, UpdateManifest, join_body, update_id
from schemas.products import truncate
from schemas.topics import UpdateChunk, UpdateManifestOf, route
from simulation.seeds import generator_of, seed_of
from simulation.task import Examples

CODEC: CodecId = "int8"
MOST_CUTS = 32
REPORTED = 8  # of a node's own tests are what it measures versions on


class Message(NamedTuple):
    """What the broker would deliver."""

    topic: str
    payload: bytes


class Job(NamedTuple):
    """A node's n-th job, n from 0, from the version it holds."""

    node: str
    number: int
    start: GlobalAdapter
    duration: float  # in jobs of the fastest node


@dataclass
class Learner:
    """Does the jobs of all nodes, one after the other."""

    model: LanguageModel
    config: FederationConfig
    training: TrainingConfig
    seed: int
    ranks: Mapping[str, int]  # of each node's factors
    own: dict[str, Adapter] = field(default_factory=dict)  # the factors that nodes keep to themselves
    tests: Mapping[str, Examples] = field(default_factory=dict)  # by node, what it never trains on
    cpu_seconds: list[float] = field(default_factory=list)  # of each job
    cuts: dict[tuple[str, int], Adapter] = field(default_factory=dict)  # to other ranks, by digest and rank

    def work(self, job: Job, examples: tuple[Example, ...]) -> tuple[Message, ...]:
        """Do a job; the messages with its update, or none when the training diverged, as a node would not send it."""
        begun = time.process_time()
        delta, result = self.learn(job, examples)
        self.cpu_seconds.append(time.process_time() - begun)
        if not delta.is_finite or not math.isfinite(result.mean_loss):
            return ()
        shared = self.config.strategy.shared_factors
        if self._keeps is not None:
            self.own[job.node] = result.adapter.only(self._keeps)
        return self._messages(job, delta if shared == "both" else delta.only(shared), result, len(examples))

    def learn(self, job: Job, examples: tuple[Example, ...]) -> tuple[Adapter, TrainingResult]:
        """What a job's training learns: the delta that the node sends, and the training's result."""
        start = self.works_with(job.node, job.start.adapter)
        training = self.training.model_copy(update={"seed": seed_of(self.seed, job.node, "job", job.number)})
        result = train(self.model, start, examples, training, _unheard)
        delta, privacy = result.adapter - start, self.config.privacy
        return delta if privacy is None or not delta.is_finite else delta.clipped(privacy.clip_norm), result

    def works_with(self, node: str, adapter: Adapter) -> Adapter:
        """What a node makes of a global adapter: it cuts it to its rank, and puts in what it keeps to itself."""
        if self.ranks[node] != adapter.layout.lora.rank:
            adapter = self._cut(adapter, self.ranks[node])
        return adapter + self.own[node] if node in self.own else adapter

    def _cut(self, adapter: Adapter, rank: int) -> Adapter:
        key = (adapter.digest, rank)
        if key not in self.cuts:
            self.cuts[key] = truncate(adapter, adapter.layout.with_rank(rank))
            while len(self.cuts) > MOST_CUTS:
                self.cuts.pop(next(iter(self.cuts)))
        return self.cuts[key]

    @property
    def _keeps(self) -> Literal["A", "B"] | None:
        """The factor that nodes train and do not share; its place in the global adapter is zero."""
        strategy = self.config.strategy
        return "B" if strategy.shared_factors == "A" and strategy.trained_factors == "both" else None

    def _report(self, job: Job) -> float | None:
        """What a node says of the version that it began with, where the strategy asks nodes."""
        tests = self.tests.get(job.node, ())[-REPORTED:]  # the first ones judge the run
        if self.config.strategy.release.fall_back is None or not tests:
            return None
        return losses(self.model, self.works_with(job.node, job.start.adapter), tests)

    def _messages(self, job: Job, delta: Adapter, result: TrainingResult, examples: int) -> tuple[Message, ...]:
        body = encode(delta, CODEC)
        manifest = UpdateManifest(
            node=job.node,
            boot_id=f"{seed_of(self.seed, job.node):032x}",
            sequence=job.number,
            base_version=job.start.version,
            base_digest=job.start.digest,
            base_model=self.config.base_model,
            layout=delta.layout.digest,
            examples=min(examples, result.examples_seen),
            steps=result.steps,
            participation=job.number,
            loss=result.mean_loss,
            seconds=job.duration,
            held_out_loss=self._report(job),
            body=describe(body, CODEC),
        )
        text = manifest.to_bytes()
        name = update_id(text)
        topic = route(self.config.federation, UpdateManifestOf(job.node, name)).topic
        if not manifest.body.chunks:
            return (Message(topic, join_body(text, body)),)
        chunks = (
            Message(route(self.config.federation, UpdateChunk(job.node, name, index)).topic, chunk)
            for index, chunk in enumerate(split(body, MAX_CHUNK_SIZE))
        )
        return (Message(topic, text), *chunks)


def ranks_of(nodes: Sequence[str], ranks: Sequence[int], seed: int) -> Mapping[str, int]:
    """A rank for every node, each rank as often as the others, drawn by the seed."""
    order = generator_of(seed, "ranks").permutation(len(nodes))
    return {nodes[node]: ranks[place % len(ranks)] for place, node in enumerate(order)}


def _unheard(step: int, loss: float) -> None:
    """Nobody watches."""
