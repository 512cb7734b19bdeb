"""The form of a tool server: what may stand in it is said in `sessions.tool_servers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _

from sessions import tool_servers
from sessions.models import ToolServer
from workspaces.forms import Problems
from workspaces.models import User, Workspace

ALL, CHOSEN = "all", "chosen"


class _WriteOnlyText(forms.Textarea):
    """A textarea that never shows what it was given."""

    def format_value(self, value: Any) -> str:
        return ""


class _Needed(forms.CharField):
    """`required` only marks the label: what is missing is said where it is judged."""

    def validate(self, value: str) -> None:
        pass


class ToolServerForm(Problems, forms.Form):
    """Makes a server, or edits one when `server` is given. Fields left out keep what they are."""

    use_required_attribute = False

    name = _Needed(label=_("Name"), help_text=_("Sessions show it beside each call."))
    prefix = forms.CharField(
        label=_("Prefix"),
        required=False,
        widget=forms.TextInput(attrs={"spellcheck": "false", "data-mono": True}),
        help_text=_("Models know its tools as prefix__tool. Left empty, it comes from the name."),
    )
    url = _Needed(
        label=_("Address"),
        widget=forms.TextInput(
            attrs={
                "inputmode": "url",
                "spellcheck": "false",
                "placeholder": "https://tools.example.com/mcp",
            }
        ),
        help_text=_("Of an MCP server over streamable HTTP. Keys belong in the headers."),
    )
    headers = forms.CharField(
        label=_("Headers"),
        required=False,
        widget=_WriteOnlyText(
            attrs={"data-mono": True, "spellcheck": "false", "autocomplete": "off", "rows": 3}
        ),
        help_text=_(
            "One “Name: value” a line, like “Authorization: Bearer …”. Encrypted, sent to this "
            "address only, never shown again."
        ),
    )
    tools_mode = forms.ChoiceField(
        label=_("Tools"),
        required=False,
        widget=forms.RadioSelect,
        choices=[(ALL, _("All that it lists, also those that come later")), (CHOSEN, _("Chosen"))],
    )
    tool = forms.MultipleChoiceField(
        label=_("Chosen tools"), required=False, widget=forms.CheckboxSelectMultiple
    )

    def __init__(
        self, data: Mapping[str, Any] | None = None, *, server: ToolServer | None = None
    ) -> None:
        self.server = server
        initial: dict[str, Any] = {"tools_mode": ALL}
        if server is not None:
            initial = {
                "name": server.name,
                "prefix": server.prefix,
                "url": server.url,
                "tools_mode": ALL if server.allowed_tools is None else CHOSEN,
                "tool": server.allowed_tools or [],
            }
        super().__init__(data, initial=initial)
        self.fields["name"].required = self.fields["url"].required = False
        if server is None or not (server.tools or server.allowed_tools):
            del self.fields["tool"], self.fields["tools_mode"]
        else:
            listed = {tool["name"]: tool["title"] or tool["name"] for tool in server.tools}
            gone = {name: name for name in server.allowed_tools or [] if name not in listed}
            self.fields["tool"].choices = [*listed.items(), *gone.items()]
        if server is not None and server.headers is not None:
            self.fields["headers"].help_text = _t(
                "Stored: %(names)s. Leave blank to keep them; write {} to remove them."
            ) % {"names": ", ".join(server.header_names)}

    def save(self, actor: User, workspace: Workspace) -> ToolServer | None:
        """None when the verbs refuse: their sentences then stand at the fields. Looks the address
        up, so not within a transaction."""
        given = {name: self.cleaned_data[name] for name in self.fields if name in self.data}
        headers = given.get("headers") or None
        allowed = self.server.allowed_tools if self.server else None
        if (mode := given.get("tools_mode")) in (ALL, CHOSEN):
            allowed = None if mode == ALL else self.cleaned_data["tool"]
        try:
            if self.server is None:
                return tool_servers.create(
                    actor,
                    workspace,
                    name=given.get("name", ""),
                    url=given.get("url", ""),
                    prefix=given.get("prefix", ""),
                    headers=headers,
                )
            tool_servers.update(
                actor,
                self.server,
                name=given.get("name", self.server.name),
                url=given.get("url", self.server.url),
                prefix=given.get("prefix", self.server.prefix),
                headers=headers,
                allowed_tools=allowed,
            )
        except ValidationError as error:
            by_field = error.error_dict if hasattr(error, "error_dict") else {None: [error]}
            for name, errors in by_field.items():
                self.add_error(name if name in self.fields else None, errors)
            return None
        return self.server
