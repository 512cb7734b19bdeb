"""The pages that bring connections in and take them out, for instance admins."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from django.contrib import messages
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from connections import display, schema, tasks, transfer
from connections.choices import ProviderType, Status
from connections.models import Connection
from connections.preview import preview
from connections.schema import BadFile, Document, Generation, Plan, Result
from connections.views import SeeOther, connection_crumbs
from workspaces.models import AuditEvent, User, Workspace
from workspaces.permissions import need_instance_admin

PREVIEW_SECONDS = 30 * 60

# -- in --------------------------------------------------------------------------------------------


@sensitive_post_parameters("text", "draft")
@require_http_methods(["GET", "HEAD", "POST"])
def connection_import(request: HttpRequest) -> HttpResponse:
    """First a `file`, or its `text`: shows what would happen and changes nothing. Then `draft` with
    the items to `take` of what was shown.

    Between the two nothing is stored: the page itself carries the file, without what looked like a
    secret, signed for this person and for half an hour.
    """
    admin = need_instance_admin(request)
    if request.method != "POST":
        return render(request, "connections/import.html", _import_context())
    try:
        if "draft" in request.POST:
            return _apply(request, admin)
        return _show(request, admin, schema.read(_given(request)))
    except BadFile as error:
        return _not_read(request, str(error))


def _import_context(**more: Any) -> dict[str, Any]:
    return {"crumbs": connection_crumbs(_("Import")), **more}


def _given(request: HttpRequest) -> bytes:
    """The file's bytes, or one more than may be read. Raises `BadFile`."""
    if file := request.FILES.get("file"):
        return file.read(schema.MAX_BYTES + 1)
    # Three bytes a character at most: a text beyond that is refused before it is encoded.
    text = request.POST.get("text", "")[: schema.MAX_BYTES + 1]
    if not text.strip():
        raise BadFile(_("Choose a file, or paste its text, first."))
    return text.encode("utf-8", "surrogatepass")


def _not_read(request: HttpRequest, sentence: str) -> HttpResponse:
    """For htmx only the sentence: what was chosen or pasted stays in the browser."""
    context = _import_context(problem=sentence)
    if not request.htmx:
        return render(request, "connections/import.html", context, status=422)
    response = render(request, "connections/import.html#problem", context, status=422)
    response.headers["HX-Retarget"] = "#import-problem"
    response.headers["HX-Reswap"] = "outerHTML"
    return response


def _show(
    request: HttpRequest,
    admin: User,
    document: Document,
    *,
    ticked: Collection[str] | None = None,
    problems: Mapping[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    plan = transfer.preview_document(document)
    stamps = {item.key: item.stamp for item in (*plan.rows, *plan.defaults)}
    draft = {"document": schema.carry(document), "stamps": stamps}
    context = _import_context(
        preview=preview(plan, ticked=ticked, problems=problems),
        draft=signing.dumps(draft, salt=_salt(admin), compress=True),
        first_default=_first_default(plan),
        validate=request.POST.get("validate", "on") == "on" if ticked is not None else True,
    )
    part = "#import" if request.htmx else ""
    return render(request, f"connections/import.html{part}", context, status=status)


def _first_default(plan: Plan) -> str:
    """The connection that becomes the global default by being the first one, "" for none."""
    if Connection.objects.living().filter(is_default=True).exists():
        return ""
    return next((row.name for row in plan.rows if row.result == Result.NEW), "")


def _salt(admin: User) -> str:
    return f"connections.import.{admin.pk}"


def _apply(request: HttpRequest, admin: User) -> HttpResponse:
    try:
        draft = signing.loads(request.POST["draft"], salt=_salt(admin), max_age=PREVIEW_SECONDS)
    except signing.SignatureExpired:
        raise BadFile(
            _("This preview is older than half an hour. Choose the file again.")
        ) from None
    except signing.BadSignature:
        raise BadFile(_("This preview can't be used any more. Choose the file again.")) from None
    document = schema.carried(draft["document"])
    keys = [key for key in request.POST.getlist("take") if key in draft["stamps"]]
    if not keys:
        messages.warning(request, _("Tick at least one item first."))
        return _show(request, admin, document, ticked=(), status=422)
    taken = {key: draft["stamps"][key] for key in keys}
    try:
        done = transfer.import_document(admin, document, taken=taken)
    except transfer.NotAsShown as error:
        return _show(request, admin, document, ticked=keys, problems=error.problems, status=409)
    if request.POST.get("validate") == "on":
        tasks.request_validation(_to_validate(done.plan), admin, "import")
    assert done.event is not None  # something was taken, and all of it was done
    return SeeOther(reverse("connections:import_result", args=[done.event.pk]))


def _to_validate(plan: Plan) -> list[Connection]:
    """What was made or changed and can be called: it isn't paused and needs no secret."""
    slugs = [row.slug for row in plan.rows if row.result in (Result.NEW, Result.CHANGED)]
    found = Connection.objects.living().with_secrets().filter(slug__in=slugs)
    return [connection for connection in found if connection.status == Status.UNCHECKED]


@require_safe
def import_result(request: HttpRequest, event: uuid.UUID) -> HttpResponse:
    """What an import did, from its row of the audit, and how its connections are now; for htmx
    that list, which asks for itself while some are checked."""
    need_instance_admin(request)
    found = AuditEvent.objects.filter(pk=event, action="connection.import").first()
    if found is None:
        raise Http404
    details = found.details
    results: dict[str, str] = details.get("connections", {})
    there = Connection.objects.living().with_secrets().filter(slug__in=results)
    rows = [(display.Row.of(one, 0), Result(results[one.slug])) for one in there]
    spaces = {s.slug: s for s in Workspace.objects.filter(slug__in=details.get("workspaces", {}))}
    context = _import_context(
        event=found,
        rows=rows,
        checking=any(row.is_checking for row, _result in rows),
        counts={result.value: details.get(result.value, 0) for result in Result},
        incomplete=sum(row.status == Status.INCOMPLETE for row, _result in rows),
        default=details.get("default", ""),
        spaces=[
            (spaces[slug], default, slug in details.get("made", ()))
            for slug, default in details.get("workspaces", {}).items()
            if slug in spaces
        ],
    )
    part = "#connections" if request.htmx else ""
    return render(request, f"connections/import_result.html{part}", context)


# -- out -------------------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
def connection_export(request: HttpRequest) -> HttpResponse:
    """What a file would hold, by `generation`; a POST gives it, since taking one is audited.

    `which`: `all` (the default) or `chosen`, those of `slug`; `workspaces`, sent with `which`,
    says whether their defaults go along.
    """
    admin = need_instance_admin(request)
    asked = request.POST if request.method == "POST" else request.GET
    value = asked.get("generation", Generation.OWN)
    generation = Generation(value) if value in Generation.values else Generation.OWN
    context: dict[str, Any] = {"generation": generation, "which": asked.get("which", "all")}
    if request.method != "POST":
        return _export_page(request, context)
    if value != generation:
        context["problem"] = _("Choose one of the versions.")
        return _export_page(request, context, status=422)
    slugs = set(request.POST.getlist("slug")) if context["which"] == "chosen" else None
    if slugs is not None and not slugs:
        context["problem"] = _("Choose at least one connection.")
        return _export_page(request, context, status=422)
    found = transfer.export_document(
        admin,
        generation=generation,
        slugs=slugs,
        workspaces="which" not in request.POST or "workspaces" in request.POST,
    )
    text = json.dumps(found.document, indent=2, ensure_ascii=False)
    response = HttpResponse(text, content_type="application/json")
    response.headers["Content-Disposition"] = 'attachment; filename="patchbay-connections.json"'
    return response


def _export_page(
    request: HttpRequest, context: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    listed, labels = Connection.objects.living(), dict(ProviderType.choices)
    context |= {
        "crumbs": connection_crumbs(_("Export")),
        "generations": Generation,
        "connections": [
            (slug, name, labels.get(provider, provider))
            for slug, name, provider in listed.values_list("slug", "name", "provider_type")
        ],
        "left_out": transfer.left_out_of(context["generation"]),
    }
    part = "#left-out" if request.htmx else ""
    return render(request, f"connections/export.html{part}", context, status=status)
