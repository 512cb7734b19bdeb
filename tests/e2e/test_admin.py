"""The Django admin site in a real browser, under the product's content security policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.connections.test_schema import REFERENCE
from tests.system.harness import ADMIN, ROOT, Patchbay

LISTS = [
    *("workspaces/user", "workspaces/workspace", "workspaces/membership", "workspaces/auditevent"),
    *("workspaces/vaultkey", "workspaces/installation", "connections/connection"),
    *("connections/secret", "connections/workspaceconnection", "connections/proberesult"),
    *("agent_sessions/chatsession", "agent_sessions/turn", "agent_sessions/message"),
    "agent_sessions/attachment",
]


def test_the_admin_site_works_without_one_violation(
    patchbay: Patchbay, tmp_path: Path, browser_page: Page, complaints: list[str]
):
    page, url = browser_page, patchbay.url
    config = tmp_path / "config.json"
    config.write_text(json.dumps(REFERENCE))
    page.goto(f"{url}/setup/")
    for name, value in {"token": patchbay.token, **ADMIN}.items():
        page.fill(f"[name={name}]", value)
    page.locator("form[method=post] [type=submit]").last.click()
    page.wait_for_url(lambda there: "/setup" not in there)
    subprocess.run(
        [sys.executable, "manage.py", "import_connections", str(config)],
        cwd=ROOT,
        env=patchbay.env,
        check=True,
        capture_output=True,
    )
    complaints.clear()  # other pages have tests of their own

    page.goto(f"{url}/admin/")
    expect(page.locator("#content h1")).to_contain_text("Everything in this installation")
    for model in LISTS:
        page.goto(f"{url}/admin/{model}/")
        expect(page.locator("#changelist")).to_be_visible()
        link = page.locator("#result_list tbody th a, #result_list tbody td a").first
        if link.count():
            link.click()
            expect(page.locator("#content-main form")).to_be_visible()

    page.goto(f"{url}/admin/workspaces/user/add/")
    page.fill("[name=email]", "dora@example.com")
    page.fill("[name=name]", "Dora")
    page.fill("[name=password1]", "a long enough phrase")
    page.fill("[name=password2]", "a long enough phrase")
    page.click("[name=_save]")
    expect(page.locator(".messagelist .success")).to_be_visible()

    page.goto(f"{url}/admin/workspaces/workspace/add/")
    page.fill("[name=name]", "Field Team")
    page.locator(".add-row a").click()
    page.locator("#memberships-0 .select2-selection").click()
    page.locator(".select2-search__field").fill("dora")
    page.locator(".select2-results__option", has_text="dora@example.com").click()
    page.click("[name=_save]")
    expect(page.locator(".messagelist .success")).to_be_visible()
    expect(page.locator("#result_list")).to_contain_text("field-team")

    page.goto(f"{url}/admin/connections/connection/")
    page.check("#action-toggle")
    page.select_option("[name=action]", "pause_selected")
    page.locator(".actions [type=submit], .actions button").first.click()
    expect(page.locator(".messagelist .success, .messagelist .info")).to_contain_text("changed")
    expect(page.locator("#result_list")).to_contain_text("Paused")
    assert complaints == []
