"""`/metrics`: what an operator watches, in Prometheus's format. Never a name, a text or a secret.

Everything but `patchbay_event_streams` and the process's own figures is read from the database, so
each web process says the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import DatabaseError
from django.db.models import Count, Min, Q, Sum
from django.utils import timezone
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.views import database_state, redis_state
from connections.models import Connection, ProbeResult
from sessions.models import Message, Turn, UsageDay
from sessions.stream import open_streams
from workspaces.models import AuditEvent


class Installation(Collector):
    """Read at each scrape: some ten queries on indexed or small tables."""

    def collect(self) -> Iterator[Metric]:
        yield _one("patchbay_event_streams", "Open pages of this web process.", open_streams())
        yield _one("patchbay_redis_up", "Whether Redis answers.", redis_state() == "ok")
        is_up = database_state() == "ok"
        yield _one("patchbay_database_up", "Whether the database answers.", is_up)
        if is_up:
            try:
                # All of it before anything is given: half a scrape would look like zeros.
                yield from list(_stored())
            except DatabaseError:
                return

    def describe(self) -> list[Metric]:
        return []


def _stored() -> Iterator[Metric]:
    now = timezone.now()

    def age(moment: object) -> float:
        return max((now - moment).total_seconds(), 0.0) if moment else 0.0  # type: ignore[operator]

    active = Turn.objects.filter(state__among=Turn.ACTIVE)
    yield _by("patchbay_turns", "Turns that wait or run.", "state", active, Turn.ACTIVE)
    oldest = active.filter(state=Turn.State.PENDING).aggregate(at=Min("created_at"))["at"]
    yield _one("patchbay_turn_wait_seconds", "Age of the oldest waiting turn.", age(oldest))
    late = active.filter(state=Turn.State.RUNNING, lease_until__lt=now).count()
    yield _one("patchbay_turns_without_worker", "Running turns whose lease ran out.", late)

    waiting = Message.objects.filter(delivery__among=Message.WAITING)
    yield _by(
        "patchbay_messages_waiting", "Messages that wait.", "delivery", waiting, Message.WAITING
    )

    living = Connection.objects.living()
    health = ("unchecked", "valid", "failed")
    yield _by("patchbay_connections", "Connections by health.", "health", living, health)
    yield _one("patchbay_connections_paused", "Paused ones.", living.filter(enabled=False).count())
    due = living.filter(Q(enabled=True), next_check_at__lt=now).aggregate(at=Min("next_check_at"))
    yield _one("patchbay_probe_wait_seconds", "How long the oldest probe is due.", age(due["at"]))
    last = ProbeResult.objects.order_by("-started_at").values_list("started_at", flat=True).first()
    yield _one("patchbay_probe_age_seconds", "Since the last probe began.", age(last))

    unsealed = AuditEvent.objects.filter(number=None).aggregate(n=Count("id"), at=Min("at"))
    yield _one("patchbay_audit_unsealed", "Audit rows without a seal.", unsealed["n"])
    yield _one("patchbay_audit_unsealed_seconds", "Age of the oldest.", age(unsealed["at"]))

    used = UsageDay.objects.aggregate(
        turns=Sum("turns"), read=Sum("input_tokens"), written=Sum("output_tokens")
    )
    yield CounterMetricFamily(
        "patchbay_turns_ended", "Turns that reached a provider and ended.", value=used["turns"] or 0
    )
    tokens = CounterMetricFamily("patchbay_tokens", "Tokens of all turns.", labels=["kind"])
    tokens.add_metric(["input"], used["read"] or 0)
    tokens.add_metric(["output"], used["written"] or 0)
    yield tokens


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _by(name: str, text: str, field: str, rows: object, values: object) -> Metric:
    """A figure for each of the values, also for those that no row has."""
    metric = GaugeMetricFamily(name, text, labels=[field])
    counted = rows.order_by().values_list(field).annotate(n=Count("pk"))  # type: ignore[attr-defined]
    found = dict(counted)
    for value in values:  # type: ignore[attr-defined]
        metric.add_metric([str(value)], found.get(str(value), 0))
    return metric


_registry = CollectorRegistry(auto_describe=False)
_registry.register(Installation())
ProcessCollector(registry=_registry)


def text() -> bytes:
    return generate_latest(_registry)
