"""When an owner lets a node train: limits on what the machine is at, as values. Pure: readings come in with an event.

A reading that a machine does not have forbids nothing. It does not know versions, outboxes or failures.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from schemas.messages import IdleReason

HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


class TrainingPolicy(BaseModel):
    """When a node trains; every limit is the owner's choice, and none holds unless it is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_new_examples: int = Field(
        default=0, ge=0, le=10**9, description="so many new private examples since the last training; 0 needs none"
    )
    newest_version: bool = Field(
        default=False, description="wait while a newer version is on its way, instead of training on an older one"
    )
    max_versions_behind: int | None = Field(
        default=None, ge=0, le=10**6, description="drop a job when the version held is so many ahead, and more"
    )
    max_load: float | None = Field(
        default=None, gt=0, le=1000, description="load average of a minute, by processor, beyond which nothing begins"
    )
    max_temperature_c: float | None = Field(
        default=None, ge=0, le=150, description="the hottest sensor, beyond which nothing begins"
    )
    min_battery_percent: float | None = Field(
        default=None, ge=0, le=100, description="on battery, below which nothing begins"
    )
    hours: str | None = Field(
        default=None, pattern=HOURS, description="HH:MM-HH:MM of the local clock; 22:00-06:00 goes over midnight"
    )

    @property
    def looks_at_the_machine(self) -> bool:
        """Whether anything has to be read before a training."""
        limits = (self.max_load, self.max_temperature_c, self.min_battery_percent, self.hours)
        return self.min_new_examples > 0 or any(limit is not None for limit in limits)

    @property
    def in_words(self) -> str | None:
        """The limits that are set, for people; None where none is."""
        limits = (
            f"{self.min_new_examples} new examples" if self.min_new_examples else None,
            "the newest version" if self.newest_version else None,
            _in_words("at most {:g} versions behind", self.max_versions_behind),
            _in_words("a load of at most {:g}", self.max_load),
            _in_words("at most {:g} °C", self.max_temperature_c),
            _in_words("a battery of at least {:g} %", self.min_battery_percent),
            self.hours,
        )
        return ", ".join(limit for limit in limits if limit is not None) or None


@dataclass(frozen=True)
class Conditions:
    """What the machine is at; None where it does not say."""

    load: float | None = None  # runnable processes of the last minute, by processor
    temperature_c: float | None = None  # of the hottest sensor
    battery_percent: float | None = None  # while it discharges
    minute: int | None = None  # of the local day
    examples: int | None = None  # private ones that ever came in


def reason_against(policy: TrainingPolicy, now: Conditions, examples_before: int | None) -> IdleReason | None:
    """The first limit that forbids to begin a training now; `examples_before` were there when the last one began."""
    if _is_over(now.temperature_c, policy.max_temperature_c):
        return "hot"
    if _is_over(policy.min_battery_percent, now.battery_percent):
        return "battery_low"
    if _is_over(now.load, policy.max_load):
        return "busy"
    if policy.hours is not None and now.minute is not None and not _is_within(now.minute, policy.hours):
        return "not_at_this_hour"
    if now.examples is not None and examples_before is not None:
        # fewer than before: the file was replaced, and all of it counts
        new = now.examples - examples_before if now.examples >= examples_before else now.examples
        return "few_new_examples" if new < policy.min_new_examples else None
    return None


def is_too_far_behind(policy: TrainingPolicy, base_version: int, held_version: int) -> bool:
    """Whether a job on this base is no longer worth its end."""
    return policy.max_versions_behind is not None and held_version - base_version > policy.max_versions_behind


def _is_over(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def _is_within(minute: int, hours: str) -> bool:
    begin, end = (int(time[:2]) * 60 + int(time[3:]) for time in hours.split("-"))
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _in_words(words: str, limit: float | None) -> str | None:
    return None if limit is None else words.format(limit)
