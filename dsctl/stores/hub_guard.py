"""Send the token to the hub's own address only, and identify dsctl in every request."""

from __future__ import annotations

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]  # exported lazily

from dsctl.core.errors import SourceError
from dsctl.stores.objects import shown
from dsctl.version import __version__

_USER_AGENT = "dsctl/"


def request_headers() -> dict[str, str]:
    """Headers of every request: the client's name, and huggingface_hub's token."""
    return dict(build_hf_headers(library_name="dsctl", library_version=__version__))


def guard() -> None:
    """Restrict the token to the endpoint's own origin (scheme, host and port) in all requests that dsctl causes.

    huggingface_hub sends it wherever the hub's answers lead: redirects, `Link` headers, routes for new Xet
    tokens. Requests of other libraries over the same session are left alone.
    """
    hooks = get_session().event_hooks
    for kind, hook in (("request", _withhold), ("response", _refuse_elsewhere)):
        if hook not in hooks[kind]:
            hooks[kind].append(hook)


def _ours(request: httpx2.Request) -> bool:
    return _USER_AGENT in request.headers.get("user-agent", "")


def _elsewhere(url: httpx2.URL) -> bool:
    return url.origin != httpx2.URL(constants.ENDPOINT).origin


def _withhold(request: httpx2.Request) -> None:
    """Do not send the token to a different origin. Redirects to storage use signed addresses."""
    if _ours(request) and _elsewhere(request.url):
        request.headers.pop("Authorization", None)


def _refuse_elsewhere(response: httpx2.Response) -> None:
    """Refuse an answer that sends a request with the token to a different origin.

    Raises:
        SourceError: the next page, or the route to a new Xet token, has a different origin.
    """
    if not _ours(response.request):
        return
    named = {
        "the next page of its listing": response.links.get("next", {}).get("url"),
        "a new Xet token": response.links.get("xet-auth", {}).get("url")
        or response.headers.get(constants.HUGGINGFACE_HEADER_X_XET_REFRESH_ROUTE),
    }
    for what, link in named.items():
        if not link:
            continue
        # huggingface_hub replaces the hub's own address by the endpoint.
        route = link.startswith(constants.HUGGINGFACE_CO_URL_HOME) and "Xet" in what
        if not route and _elsewhere(response.url.join(link)):
            there, here = shown(link.partition("?")[0]), shown(constants.ENDPOINT)
            hint = (
                "a correctly configured mirror uses its own address: set HF_ENDPOINT to the hub that has the repository"
            )
            raise SourceError(f"{here}: names {there} for {what}: dsctl only asks the hub's own origin", hint=hint)
