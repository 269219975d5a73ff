"""ingress-nginx's controller, as far as it makes an nginx.conf of a ConfigMap and the annotations of an Ingress.

The controller needs a cluster. What it writes for the keys that our files use is known from its template, and is in
ingress/nginx.tmpl; this module knows nothing else of it.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

_BLOCK = re.compile(r"(?m)^  ([a-z-]+): \|\n((?:    .*\n|\n)+)")
_LINE = re.compile(r"(?m)^ +(?:nginx\.ingress\.kubernetes\.io/)?([A-Za-z-]+): ([^|\s].*?)(?:  #.*)?$")
_HOLE = re.compile(r"\{\{ ([a-z-]+) \}\}")
# Only cluster DNS knows the edge's Service.
_SERVICE = "edge-fairvisor.default.svc.cluster.local"

_ASKING = """
auth_request /_external-auth-Lw-Prefix;
auth_request_set $auth_cookie $upstream_http_set_cookie;
add_header Set-Cookie $auth_cookie;
"""
# With auth-keepalive.
_ASKING_IN_LUA = """
set $auth_cookie '';
add_header Set-Cookie $auth_cookie;
access_by_lua_block {
    local answer = ngx.location.capture("/_external-auth-Lw-Prefix", { method = ngx.HTTP_GET, body = "" })
    if answer.status == ngx.HTTP_OK then
        ngx.var.auth_cookie = answer.header["Set-Cookie"]
    elseif answer.status == ngx.HTTP_UNAUTHORIZED or answer.status == ngx.HTTP_FORBIDDEN then
        ngx.exit(answer.status)
    else
        ngx.exit(ngx.HTTP_INTERNAL_SERVER_ERROR)
    end
}
"""
_LUA = "".join(
    f"load_module /usr/lib/nginx/modules/{name}_module.so;\n" for name in ("ndk_http", "ngx_http_lua")
)
_CACHE = """
set $cache_key '{key}';
proxy_cache auth_cache;
proxy_cache_valid 200 202 401 5m;
proxy_cache_key "$cache_key";
"""


def write_configuration(folder: Path, *names: str) -> Path:
    """Write the nginx.conf that the controller makes of the files `names` in `folder`: a later one changes what an
    earlier one says.
    """
    given: dict[str, str] = {}
    for name in names:
        given |= read_settings((folder / name).read_text())
    own = "auth-url" in given  # an Ingress with a question of its own is not asked about globally
    auth_url = given["auth-url" if own else "global-auth-url"].replace(_SERVICE, "127.0.0.1")
    kept_alive, cached = "auth-keepalive" in given, "auth-cache-key" in given
    values = given | {
        "modules": _LUA if kept_alive else "",
        "asking": _ASKING_IN_LUA if kept_alive else _ASKING,
        "auth-cache-path": f"proxy_cache_path {folder}/cache keys_zone=auth_cache:10m;" if cached else "",
        "auth-buffering": "on" if cached else "off",
        "auth-cache": _CACHE.replace("{key}", given["auth-cache-key"]) if cached else "",
        "auth-url": auth_url,
        "auth-host": urlsplit(auth_url).hostname or "",
        "auth-snippet": "" if own else given["global-auth-snippet"],
        "auth-proxy-set-headers": given.get("auth-proxy-set-headers", "") if own else "",
    }
    configuration = folder / "nginx.conf"
    template = (folder / "nginx.tmpl").read_text()
    configuration.write_text(_HOLE.sub(lambda hole: values.get(hole[1], ""), template))
    return configuration


def read_settings(text: str) -> dict[str, str]:
    """Return the data of a ConfigMap, or the annotations of an Ingress with the headers of the ConfigMap behind it."""
    first, _, headers = text.partition("\n---\n")
    found = dict(_LINE.findall(_BLOCK.sub("", first)))
    found |= {name: textwrap.dedent(block).rstrip("\n") + "\n" for name, block in _BLOCK.findall(first)}
    if headers:
        lines = (f"proxy_set_header '{name}' '';" for name in read_headers(headers))
        found["auth-proxy-set-headers"] = "\n".join(lines)
    return found


def read_headers(text: str) -> list[str]:
    """Return the names of the headers that a ConfigMap empties."""
    return re.findall(r'(?m)^  ([A-Za-z-]+): ""', text)
