"""Page tokens (AIP-158): opaque, and good only for the query that gave them."""

import base64
import binascii
import hashlib
import json

from sightline.common.v1.error_reason_pb2 import ErrorReason as Reason

from chassis.errors import InvalidRequest


def page_token(query: str, cursor: str) -> str:
    """The token of the page after `cursor` of `query`; the query names method, caller's scope and filters."""
    return base64.urlsafe_b64encode(json.dumps([_digest(query), cursor]).encode()).decode().rstrip("=")


def page_cursor(query: str, token: str) -> str:
    """The cursor in a token, empty for the first page; InvalidRequest if another query gave it."""
    if not token:
        return ""
    try:
        digest, cursor = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, TypeError):
        digest, cursor = "", ""
    if digest != _digest(query) or not isinstance(cursor, str):
        raise InvalidRequest(Reason.ERROR_REASON_PAGE_TOKEN_INVALID, "the page token is not one that this query gave")
    return cursor


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:16]
