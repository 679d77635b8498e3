"""Who calls, and whether they may: keys in the Authorization header, scopes, rates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from nvpstore.api.auth.keys import SCOPES, Key, Scope
from nvpstore.api.auth.rates import Allowance
from nvpstore.api.service.offloop import off_loop
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service, service_of

REALM = 'Bearer realm="nvpstore"'
# A proxy in front adds one of these: then the caller is not on this machine, wherever we listen.
FORWARDING = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
LONGEST_HEADER = 512

# For the OpenAPI description; what it finds is not used, since it passes over repeated headers.
_BEARER = HTTPBearer(
    scheme_name="key",
    description="A key that `nvp keys add` made, with the scope that the route needs: "
    "`read`, `query`, `ingest` or `admin` (all of them).",
    auto_error=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request. `key_id` is "local" where no key is needed."""

    key_id: str
    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Caller(key_id="local", name="local", scopes=frozenset(SCOPES))


def needs(scope: Scope | None) -> Callable[..., Awaitable[Caller]]:
    """A FastAPI dependency: the caller, who may do what `scope` says; None: whoever has a usable key.

    Refuses with 401 a key that is missing, malformed, unknown, revoked or expired, with 403 one without the
    scope, with 429 one that asks too often.
    """

    async def caller_with_scope(
        request: Request,
        service: Annotated[Service, Depends(service_of)],
        _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Caller:
        return await admitted(request, service, scope)

    return caller_with_scope


async def admitted(request: Request, service: Service, scope: Scope | None) -> Caller:
    """The caller of `request`, as `needs` has it."""
    caller = await _caller(request, service)
    request.state.caller = caller  # logs and the audit say who was refused, too
    if caller is not LOCAL:
        allowance = service.rates.request(caller.key_id)
        request.state.allowance = allowance
        if not allowance.allowed:
            raise _too_often(allowance, f"key {caller.key_id}: {allowance.limit} requests")
    if scope is not None and not caller.may(scope):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"scope {scope!r} is needed; key {caller.key_id} has {', '.join(sorted(caller.scopes))}",
            headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'},
        )
    return caller


def from_this_machine(request: Request, service: Service) -> bool:
    """Whether only this machine can have sent it, and no proxy for another one."""
    return service.loopback and not any(name in request.headers for name in FORWARDING)


async def _caller(request: Request, service: Service) -> Caller:
    headers = request.headers.getlist("authorization")
    if from_this_machine(request, service) and await off_loop(service.keys.untouched):
        return LOCAL
    if not headers:
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            "a key is needed: Authorization: Bearer nvp_…",
            headers={"WWW-Authenticate": REALM},
        )
    key = await _key(headers, service)
    if key is None:
        raise _unknown(request, service)
    return Caller(key_id=key.id, name=key.name, scopes=key.scopes)


async def _key(headers: list[str], service: Service) -> Key | None:
    """The key of the only Authorization header; None where there is no usable one."""
    if len(headers) != 1 or len(headers[0]) > LONGEST_HEADER:
        return None
    kind, _, secret = headers[0].partition(" ")
    if kind.lower() != "bearer":
        return None
    return await off_loop(lambda: service.keys.check(secret.strip(" ")))


def _unknown(request: Request, service: Service) -> Refused:
    # Counted only once it turned out wrong: a good key comes in beside a bad one behind the same proxy.
    address = request.client.host if request.client else "unknown"
    allowance = service.rates.failure(address)
    if not allowance.allowed:
        return _too_often(allowance, f"{allowance.limit} requests with a wrong key")
    return Refused(
        HTTPStatus.UNAUTHORIZED,
        "one header `Authorization: Bearer nvp_…` with a key that is known, not revoked and not expired is "
        "needed",
        headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'},
    )


def _too_often(allowance: Allowance, what: str) -> Refused:
    return Refused(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"{what} in {allowance.window_seconds} s, as many as may be: again in {allowance.reset_seconds} s",
        headers=allowance.headers(),
    )
