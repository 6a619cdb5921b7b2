"""GET /: the page, a few static files that use nothing but the public API."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

DIRECTORY = Path(__file__).with_name("page")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline; nobody frames the page or learns where it was.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def page_routes() -> APIRouter:
    """GET / and GET /page/NAME."""
    files = {
        path.name: (path.read_bytes(), MEDIA_TYPES[path.suffix]) for path in DIRECTORY.iterdir()
    }
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def get_page() -> Response:
        return answer("index.html")

    @router.get("/page/{name}")
    async def get_file(name: str) -> Response:
        return answer(name)

    def answer(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=HEADERS)

    return router
