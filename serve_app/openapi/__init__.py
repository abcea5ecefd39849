"""What the service speaks over HTTP, as an OpenAPI 3.1 document and as a page: https://spec.openapis.org/oas/v3.1.1."""

from serve_app.openapi.document import document
from serve_app.openapi.page import page
from serve_app.openapi.parts import Json, Served

__all__ = ["Json", "Served", "document", "page"]
